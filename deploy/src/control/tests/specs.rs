//! What services may ask for, and what is refused by name.

use super::*;

#[test]
fn service_specs_follow_dockers_rules() {
    let bad = |words| Err((ErrorKind::Invalid, words));
    for name in ["", "-web", "web-", "a.b", "a b", "wéb"] {
        let words =
            if name.is_empty() { "name must be provided" } else { "name must be valid as a DNS name component" };
        check_spec(|spec| spec.name = name.into(), bad(words));
    }
    check_spec(|spec| spec.name = "a".repeat(64), bad("63 characters or fewer"));
    check_spec(|spec| spec.name = "my_web-2".into(), Ok(()));
    check_spec(|spec| spec.task.container.image = "".into(), bad("ContainerSpec: image reference must be provided"));
    for image in ["Nginx", "nginx:", "a//b", "nginx@sha256:12", "ng inx", ":tag", "/a"] {
        check_spec(|spec| spec.task.container.image = image.into(), bad("is not a valid repository/tag"));
    }
    let digest = format!("localhost:5000/a/b_c:1.2@sha256:{}", "ab".repeat(32));
    for image in ["nginx", "docker.io/library/nginx:alpine", "h.example:5000/x", digest.as_str()] {
        check_spec(|spec| spec.task.container.image = image.into(), Ok(()));
    }
    check_spec(
        |spec| spec.task.resources.limits.memory_bytes = 1000,
        bad("invalid memory value 1000: Must be at least 4MiB"),
    );
    check_spec(|spec| spec.task.resources.reservations.nano_cpus = 10, bad("Must be at least 0.001"));
    check_spec(|spec| spec.task.placement.constraints = vec!["node.role".into()], bad("one operator"));
    check_spec(|spec| spec.task.placement.constraints = vec!["node.zone==a".into()], bad("invalid constraint"));
    check_spec(|spec| spec.task.placement.constraints = vec!["node.labels.zone != a".into()], Ok(()));
    check_spec(|spec| spec.task.placement.spread_over = vec!["zone".into()], bad("placement preference"));
    check_spec(|spec| spec.task.container.env = vec!["=x".into()], bad("invalid environment variable"));
    check_spec(|spec| spec.task.container.dir = "relative".into(), bad("not an absolute path"));
    check_spec(|spec| spec.task.container.stop_signal = "SIGNONE".into(), bad("invalid stop signal"));
    check_spec(|spec| spec.task.container.stop_signal = "SIGRTMIN+3".into(), Ok(()));
    check_spec(|spec| spec.task.container.oom_score_adj = 2000, bad("oom score adj"));
    check_spec(|spec| spec.update.get_or_insert_default().max_failure_ppm = 2_000_000, bad("MaxFailureRatio"));
    let replicas = ServiceMode::Replicated(Replicated { replicas: Some(u64::MAX) });
    check_spec(|spec| spec.mode = Some(replicas), bad("Mode.Replicated.Replicas"));
    check_spec(
        |spec| {
            *spec = publish(spec.clone(), 80, PublishMode::Ingress);
            spec.endpoint.get_or_insert_default().set_mode(EndpointMode::Dnsrr);
        },
        bad("port published with ingress mode can't be used with dnsrr mode"),
    );
    let twice = |spec: &mut ServiceSpec| {
        *spec = publish(publish(spec.clone(), 80, PublishMode::Ingress), 80, PublishMode::Host);
    };
    check_spec(twice, bad("duplicate published ports provided"));
    check_spec(|spec| *spec = publish(spec.clone(), 70000, PublishMode::Ingress), bad("out of range"));
}

#[test]
fn mounts_follow_dockers_rules() {
    fn with(kind: MountKind, source: &str, target: &str) -> impl FnOnce(&mut ServiceSpec) {
        let mount = Mount { kind: kind as i32, source: source.into(), target: target.into(), ..Mount::default() };
        move |spec| spec.task.container.mounts.push(mount)
    }
    let bad = |words| Err((ErrorKind::Invalid, words));
    check_spec(with(MountKind::Bind, "/srv", "/data"), Ok(()));
    check_spec(with(MountKind::Tmpfs, "", "/tmp"), Ok(()));
    check_spec(with(MountKind::Bind, "srv", "/data"), bad("must be an absolute path"));
    check_spec(with(MountKind::Bind, "/srv", ""), bad("mount target must not be empty"));
    check_spec(with(MountKind::Bind, "/srv", "/"), bad("destination can't be '/'"));
    check_spec(with(MountKind::Bind, "/srv", "/a/../../b"), bad("must not contain .."));
    check_spec(with(MountKind::Tmpfs, "/x", "/tmp"), bad("source must be empty"));
    check_spec(
        |spec| {
            with(MountKind::Tmpfs, "", "/tmp")(spec);
            with(MountKind::Bind, "/srv", "/tmp/")(spec);
        },
        bad("duplicate mount point"),
    );
    let change = |name: &str, change: fn(&mut Mount)| {
        let kind = if name.starts_with('/') { MountKind::Bind } else { MountKind::Volume };
        let mut mount = Mount { kind: kind as i32, source: name.into(), target: "/data".into(), ..Mount::default() };
        change(&mut mount);
        move |spec: &mut ServiceSpec| spec.task.container.mounts.push(mount)
    };
    for name in ["", "data", "a.b-c_d"] {
        check_spec(with(MountKind::Volume, name, "/data"), Ok(()));
    }
    for name in ["a", "a/b", ".a", "a b", &"a".repeat(201)] {
        check_spec(with(MountKind::Volume, name, "/data"), bad("for a local volume name"));
    }
    check_spec(
        change("data", |m| m.volume_driver = "rexray".into()),
        Err((ErrorKind::Unimplemented, "DriverConfig.Name \"rexray\" is not supported yet")),
    );
    check_spec(change("data", |m| m.volume_driver = "local".into()), Ok(()));
    check_spec(
        change("data", |m| m.volume_options = [("bad".to_owned(), "1".to_owned())].into()),
        bad("invalid option: \"bad\""),
    );
    check_spec(change("data", |m| m.subpath = "a/b".into()), Ok(()));
    for subpath in ["/a", "..", "a/../.."] {
        let mut mount = Mount { source: "data".into(), target: "/data".into(), ..Mount::default() };
        mount.set_kind(MountKind::Volume);
        mount.subpath = subpath.into();
        check_spec(|spec| spec.task.container.mounts.push(mount), bad("relative path within the volume"));
    }
    check_spec(change("", |m| m.subpath = "a".into()), bad("must not set Subpath when using anonymous volumes"));
    check_spec(change("data", |m| m.propagation = "rslave".into()), bad("neither bind nor tmpfs options"));
    check_spec(change("/srv", |m| m.propagation = "rshared".into()), Ok(()));
    check_spec(change("/srv", |m| m.propagation = "odd".into()), bad("invalid propagation mode"));
    check_spec(change("/srv", |m| m.create_mountpoint = true), Ok(()));
    check_spec(change("/srv", |m| m.read_only_force_recursive = true), bad("need ReadOnly"));
}

#[test]
fn health_checks_follow_dockers_rules() {
    fn test(words: &str) -> impl FnOnce(&mut ServiceSpec) {
        let test: Vec<String> = words.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect();
        move |spec| spec.task.container.healthcheck.get_or_insert_default().test = test
    }
    let bad = |words| Err((ErrorKind::Invalid, words));
    for good in ["", "NONE", "CMD true", "CMD curl -f x", "CMD-SHELL exit"] {
        check_spec(test(good), Ok(()));
    }
    check_spec(test("true"), bad("Unknown healthcheck type 'true' (expected 'CMD')"));
    check_spec(test("CMD"), bad("has no command"));
    check_spec(test("CMD-SHELL a b"), bad("too many arguments"));
    check_spec(
        |spec| spec.task.container.healthcheck.get_or_insert_default().interval_ns = 999_999,
        bad("Interval in Healthcheck cannot be less than 1ms"),
    );
    check_spec(|spec| spec.task.container.healthcheck.get_or_insert_default().start_interval_ns = 1_000_000, Ok(()));
}

#[test]
fn credentials_go_to_the_hosts_of_tasks_that_need_them() {
    use crate::dispatcher::{affects, assignment};
    use crate::store::Store;
    let mut world = World::new();
    let hosts = [1, 2, 3].map(|number| world.join(number));
    let image = |image: &str| {
        let mut spec = web(&image.replace(['/', '.', ':'], "-"));
        spec.task.container.image = image.into();
        spec
    };
    for (host, name) in hosts.iter().zip(["r.example:5000/a:1", "R.example:5000/b", "r.example/c"]) {
        let service = world.create(image(name)).expect("a service");
        world.place(&service, host);
    }
    let headers = |world: &World| -> [Vec<String>; 3] {
        let of = |host| assignment(&world.store, host).registries().map(|r| r.auth.header.clone()).collect();
        hosts.each_ref().map(of)
    };
    for header in ["b25l", "dHdv"] {
        let before = world.store.clone();
        world.run(set_registry("r.example:5000", header)).expect("kept");
        // An update reaches the hosts, and those alone; no task is another one.
        assert_eq!(headers(&world), [vec![header.to_owned()], vec![header.to_owned()], vec![]]);
        let changed = before.changed(&world.store);
        let told = hosts.each_ref().map(|host| affects(&before, &world.store, &changed, host));
        assert_eq!((told, changed.len()), ([true, true, false], 1));
    }
    assert_eq!(world.store.registries().count(), 1);
    let hidden = world.store.without_secrets();
    assert_eq!(hidden.registries().map(|r| r.auth.header.as_str()).collect::<String>(), "");
    let bytes = world.store.encode_snapshot();
    assert_eq!(Store::decode_snapshot(&bytes).expect("a snapshot"), world.store);
    assert!(!format!("{:?} {:?}", world.store, set_registry("r.example", "dHdv")).contains("dHdv"));

    let remove = |registry: &str| Op::RemoveRegistry(RemoveRegistry { id: RegistryId::new(registry) });
    refused(world.run(remove("r.example")), ErrorKind::NotFound, "credentials for registry r.example not found");
    world.run(remove("r.example:5000")).expect("removed");
    assert_eq!(headers(&world), [const { Vec::<String>::new() }; 3]);
}

#[test]
fn credentials_for_registries_are_checked() {
    let mut world = World::new();
    let long = format!("{}.example", "a".repeat(255));
    // No image's name would lead there.
    for name in ["", "web", "R.example", "r.example/x", "index.docker.io", long.as_str()] {
        refused(world.run(set_registry(name, "e30=")), ErrorKind::Invalid, "it must look like host:port");
    }
    refused(world.run(set_registry("r.example", "")), ErrorKind::Invalid, "empty");
    refused(world.run(set_registry("r.example", &"x".repeat(65 << 10))), ErrorKind::Invalid, "X-Registry-Auth");
    for number in 0..1000 {
        world.run(set_registry(&format!("r{number}.example"), "e30=")).expect("kept");
    }
    refused(world.run(set_registry("r.example", "e30=")), ErrorKind::Exhausted, "1000 registries");
    world.run(set_registry("r7.example", "e31=")).expect("others in their place");
}

#[test]
fn secrets_and_configs_of_services_are_checked() {
    let mut world = World::new();
    let payload = |name: &str| PayloadSpec { name: name.into(), data: vec![1], ..PayloadSpec::default() };
    let secret = world.run(Op::CreateSecret(CreateSecret { spec: payload("key") })).expect("a secret").id;
    let config = world.run(Op::CreateConfig(CreateConfig { spec: payload("conf") })).expect("a config").id;
    let reference = |id: &str, name: &str, file: &str| PayloadReference {
        id: id.into(),
        name: name.into(),
        file: file.into(),
        uid: "0".into(),
        gid: "7".into(),
        mode: 0o440,
        runtime_target: false,
    };
    let mut create = |secrets: Vec<PayloadReference>, configs: Vec<PayloadReference>| {
        let mut spec = web("web");
        spec.task.container.secrets = secrets;
        spec.task.container.configs = configs;
        world.create(spec).map_err(|error| error.message)
    };
    let mut refused = |secret: PayloadReference, words: &str| {
        let message = create(vec![secret], Vec::new()).expect_err("refused");
        assert!(message.contains(words), "{message}");
    };
    refused(reference("", "key", "key"), "malformed secret reference");
    refused(reference(&secret, "", "key"), "malformed secret reference");
    refused(reference("nosuch", "key", "key"), "secret key not found");
    refused(reference(&secret, "other", "key"), "secret other not found");
    refused(reference(&config, "conf", "key"), "secret conf not found");
    for file in ["", ".", "/", "../x", "/run/../x", "a/"] {
        refused(reference(&secret, "key", file), "invalid target file");
    }
    refused(PayloadReference { uid: "web".into(), ..reference(&secret, "key", "key") }, "uid \"web\" is not a number");
    refused(PayloadReference { mode: 0o10000, ..reference(&secret, "key", "key") }, "mode 10000");
    let twice = vec![reference(&secret, "key", "key"), reference(&secret, "key", "/run/secrets//./key")];
    let message = create(twice, Vec::new()).expect_err("refused");
    assert_eq!(message, "secret references 'key' and 'key' have a conflicting target: '/run/secrets//./key'");
    let runtime = PayloadReference { runtime_target: true, ..reference(&config, "conf", "x") };
    assert!(create(Vec::new(), vec![runtime]).expect_err("refused").contains("Configs.Runtime"));
    let good = reference(&secret, "key", "deep/key");
    assert_eq!(good.secret_path().as_deref(), Some("/run/secrets/deep/key"));
    assert_eq!(good.config_path().as_deref(), Some("/deep/key"));
    create(vec![good], vec![reference(&config, "conf", "/etc/app.conf")]).expect("made");
}

#[test]
fn privileges_and_read_only_binds() {
    let bad = |words| Err((ErrorKind::Invalid, words));
    let privileges = |change: fn(&mut Privileges)| {
        move |spec: &mut ServiceSpec| change(spec.task.container.privileges.get_or_insert_default())
    };
    check_spec(privileges(|p| p.no_new_privileges = true), Ok(()));
    check_spec(privileges(|p| p.seccomp_mode = "unconfined".into()), Ok(()));
    check_spec(privileges(|p| p.seccomp_mode = "none".into()), bad("unknown mode \"none\""));
    check_spec(privileges(|p| p.seccomp_mode = "custom".into()), bad("a profile goes with mode"));
    check_spec(privileges(|p| p.seccomp_profile = b"{}".to_vec()), bad("a profile goes with mode"));
    let custom = |size: usize| {
        move |spec: &mut ServiceSpec| {
            let privileges = spec.task.container.privileges.get_or_insert_default();
            (privileges.seccomp_mode, privileges.seccomp_profile) = ("custom".into(), vec![b' '; size]);
        }
    };
    check_spec(custom(100), Ok(()));
    check_spec(custom((64 << 10) + 1), bad("longer than"));
    check_spec(privileges(|p| p.apparmor_mode = "disabled".into()), Ok(()));
    check_spec(privileges(|p| p.apparmor_mode = "mine".into()), bad("AppArmor.Mode"));
    check_spec(privileges(|p| p.selinux_disabled = true), Ok(()));
    let label = |parts: &[&str]| parts.iter().map(|part| (*part).to_owned()).collect::<Vec<_>>();
    check_spec(privileges(|p| p.selinux_label = vec![String::new(); 3]), bad("SELinuxContext"));
    let labelled = label(&["", "", "web_t", "s0:c1,c2"]);
    let set = |list: Vec<String>, disabled: bool| {
        move |spec: &mut ServiceSpec| {
            let privileges = spec.task.container.privileges.get_or_insert_default();
            (privileges.selinux_label, privileges.selinux_disabled) = (list, disabled);
        }
    };
    check_spec(set(labelled.clone(), false), Ok(()));
    check_spec(set(labelled, true), bad("disabled, and with a label"));
    check_spec(set(label(&["", "", "a b", ""]), false), bad("SELinuxContext"));
    let bind = |change: fn(&mut Mount)| {
        move |spec: &mut ServiceSpec| {
            let mut mount = Mount { source: "/srv".into(), target: "/srv".into(), ..Mount::default() };
            mount.set_kind(MountKind::Bind);
            change(&mut mount);
            spec.task.container.mounts.push(mount);
        }
    };
    check_spec(bind(|m| (m.read_only, m.read_only_force_recursive) = (true, true)), Ok(()));
    check_spec(bind(|m| (m.read_only, m.read_only_non_recursive) = (true, true)), Ok(()));
    check_spec(bind(|m| m.read_only_force_recursive = true), bad("need ReadOnly"));
    let all = |m: &mut Mount| {
        (m.read_only, m.read_only_force_recursive, m.read_only_non_recursive) = (true, true, true);
    };
    check_spec(bind(all), bad("neither NonRecursive nor"));
    let slave = |m: &mut Mount| {
        (m.read_only, m.read_only_force_recursive, m.propagation) = (true, true, "rslave".into());
    };
    check_spec(bind(slave), bad("needs Propagation rprivate"));
}

#[test]
fn fields_without_effect_are_refused_by_name() {
    let no = |words| Err((ErrorKind::Unimplemented, words));
    check_spec(|spec| spec.task.container.init = Some(true), Ok(()));
    check_spec(|spec| spec.task.container.init = Some(false), Ok(()));
    check_spec(|spec| spec.task.container.env = vec!["A={{.Node.ID}}".into()], no("Env with a template"));
    check_spec(|spec| spec.task.container.hostname = "{{.Node.ID}}".into(), no("Hostname with a template"));
    check_spec(|spec| spec.task.log_driver.get_or_insert_default().name = "gelf".into(), no("LogDriver \"gelf\""));
    check_spec(|spec| spec.task.log_driver.get_or_insert_default().name = "syslog".into(), Ok(()));
    check_spec(
        |spec| {
            let driver = spec.task.log_driver.get_or_insert_default();
            driver.name = "json-file".into();
            driver.options = [("max-size".into(), "10m".into()), ("max-file".into(), "3".into())].into();
        },
        Ok(()),
    );
    check_spec(|spec| spec.mode = Some(ServiceMode::GlobalJob(Global {})), no("Mode.GlobalJob"));
    check_spec(|spec| spec.mode = Some(ServiceMode::Global(Global {})), Ok(()));
    let sctp = |spec: &mut ServiceSpec| {
        *spec = publish(spec.clone(), 80, PublishMode::Ingress);
        spec.endpoint.get_or_insert_default().ports[0].set_protocol(PortProtocol::Sctp);
    };
    check_spec(sctp, no("sctp"));
}
