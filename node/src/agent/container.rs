//! A task as a container: what the service asks for, laid over what the image says.

use std::collections::BTreeMap;
use std::path::PathBuf;

use deploy::logging::LoggingError;
use deploy::model::{ContainerSpec, DnsConfig, Mount, MountKind, NetworkMode, PayloadReference, Privileges, Task};
use runtime::image::Image;
use runtime::{
    AppArmor, Capabilities, ContainerConfig, EtcFiles, IdMappings, Mount as RuntimeMount,
    MountKind as RuntimeMountKind, PrivateFile, Propagation, Resources, Seccomp, SelinuxLabel, Ulimit, VolumeMount,
};
use sha2::{Digest, Sha256};

use super::log_driver;
use super::plain::{Record, is_reserved};

/// Label of a container: id of its image.
pub const IMAGE_LABEL: &str = "io.shoal.image.id";
/// Label of a container: its image as the service names it.
pub(crate) const IMAGE_NAME_LABEL: &str = "io.shoal.image.name";
/// Label of a container: the task that it belongs to; Docker's own name for it.
pub(crate) const TASK_LABEL: &str = "com.docker.swarm.task.id";
/// Label of a plain container: its name.
pub(crate) const PLAIN_LABEL: &str = "io.shoal.container.name";

/// Whether a container with these labels is a plain one. An image may give the label of one to a task's.
pub(crate) fn is_plain(labels: &BTreeMap<String, String>) -> bool {
    labels.contains_key(PLAIN_LABEL) && !labels.contains_key(TASK_LABEL)
}

/// Why no container can be made of a task. The text is what `service ps` shows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ContainerError {
    /// Neither the service nor the image says what to run.
    #[error("no command specified: the image has none, and the service names none")]
    NoCommand,
    /// A mount that the runtime does not do.
    #[error("invalid mount config for type {kind:?}: {reason}")]
    Mount {
        /// Kind of the mount.
        kind: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// A seccomp profile that is no text.
    #[error("the seccomp profile is not UTF-8")]
    SeccompProfile,
    /// A log driver that this host does not have, or an option that it cannot follow.
    #[error(transparent)]
    Logging(#[from] LoggingError),
}

/// Id of the container of a task's attempt: 64 hexadecimal characters that follow from the task, so that an agent
/// which forgot everything else still finds it.
pub(super) fn container_id(task: &Task, attempt: u32) -> String {
    let digest = Sha256::digest(format!("{}/{attempt}", task.id).as_bytes());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The container of a task.
pub(super) fn config(
    task: &Task,
    node_hostname: &str,
    image: &Image,
    attempt: u32,
    users: Option<&IdMappings>,
) -> Result<ContainerConfig, ContainerError> {
    let labels = labels(task, node_hostname, image);
    build(task, Named { id: container_id(task, attempt), name: task.name(), labels }, node_hostname, image, users)
}

/// A plain container. Unlike a task's it may be started again.
pub(super) fn plain_config(
    record: &Record,
    node_hostname: &str,
    image: &Image,
    users: Option<&IdMappings>,
) -> Result<ContainerConfig, ContainerError> {
    // An image may not say whose container it is.
    let of_image = image.config.labels.iter().filter(|(key, _)| !is_reserved(key));
    let mut labels: BTreeMap<String, String> = of_image.map(|(key, value)| (key.clone(), value.clone())).collect();
    labels.extend(record.spec.container.labels.clone());
    for (key, value) in [
        (PLAIN_LABEL, record.name.clone()),
        (IMAGE_LABEL, image.id.to_string()),
        (IMAGE_NAME_LABEL, record.spec.container.image.clone()),
    ] {
        labels.insert(key.to_owned(), value);
    }
    let named = Named { id: record.id.clone(), name: record.name.clone(), labels };
    Ok(ContainerConfig { lasting: true, ..build(&record.task(), named, node_hostname, image, users)? })
}

/// What a container is called.
struct Named {
    id: String,
    name: String,
    labels: BTreeMap<String, String>,
}

fn build(
    task: &Task,
    Named { id, name, labels }: Named,
    node_hostname: &str,
    image: &Image,
    users: Option<&IdMappings>,
) -> Result<ContainerConfig, ContainerError> {
    let spec = &task.spec.container;
    let mode = task.spec.network_mode();
    let hostname = match (spec.hostname.as_str(), mode) {
        // Docker's rule: who is in the host's network has its name as well, unless given one.
        ("", NetworkMode::Host) => node_hostname.to_owned(),
        ("", _) => id[..12].to_owned(),
        (given, _) => given.to_owned(),
    };
    let env = env(&image.config.env, &spec.env);
    let log = log_driver::config(task, &name, &id, &image.id.to_string(), &labels, &env)?;
    let privileges = spec.privileges.clone().unwrap_or_default();
    Ok(ContainerConfig {
        labels,
        layers: image.layers.clone(),
        args: args(spec, image)?,
        env,
        cwd: if spec.dir.is_empty() { image.config.working_dir.clone() } else { spec.dir.clone() },
        user: if spec.user.is_empty() { image.config.user.clone() } else { spec.user.clone() },
        groups: spec.groups.clone(),
        readonly_root: spec.read_only,
        mounts: mounts(spec, &image.config.volumes)?,
        files: files(task, &hostname, mode),
        host_network: mode == NetworkMode::Host,
        resources: resources(task),
        capabilities: Capabilities { add: spec.cap_add.clone(), drop: spec.cap_drop.clone() },
        no_new_privileges: privileges.no_new_privileges,
        seccomp: seccomp(&privileges)?,
        apparmor: if privileges.apparmor_mode == "disabled" { AppArmor::Unconfined } else { AppArmor::Default },
        selinux: selinux(&privileges),
        id_mappings: users.cloned(),
        ulimits: spec.ulimits.iter().map(|u| Ulimit { name: u.name.clone(), soft: u.soft, hard: u.hard }).collect(),
        sysctls: spec.sysctls.clone(),
        oom_score_adj: spec.oom_score_adj,
        stop_signal: Some(spec.stop_signal.clone())
            .filter(|s| !s.is_empty())
            .or_else(|| image.config.stop_signal.clone()),
        log,
        init: spec.init == Some(true),
        tty: spec.tty,
        private_files: Vec::new(),
        open_stdin: spec.open_stdin,
        stdin_once: false,
        lasting: false,
        hostname,
        id,
    })
}

fn seccomp(privileges: &Privileges) -> Result<Seccomp, ContainerError> {
    Ok(match privileges.seccomp_mode.as_str() {
        "unconfined" => Seccomp::Unconfined,
        "custom" => {
            let text = String::from_utf8(privileges.seccomp_profile.clone());
            Seccomp::Custom(text.map_err(|_| ContainerError::SeccompProfile)?)
        }
        _ => Seccomp::Default,
    })
}

/// Without a word on SELinux, or with the word that it shall be off, there is no label.
fn selinux(privileges: &Privileges) -> Option<SelinuxLabel> {
    match privileges.selinux_label.as_slice() {
        [user, role, kind, level] if !privileges.selinux_disabled => {
            Some(SelinuxLabel { user: user.clone(), role: role.clone(), kind: kind.clone(), level: level.clone() })
        }
        _ => None,
    }
}

fn labels(task: &Task, node_hostname: &str, image: &Image) -> BTreeMap<String, String> {
    let mut labels = image.config.labels.clone();
    labels.extend(task.spec.container.labels.clone());
    for (key, value) in [
        (TASK_LABEL, task.id.to_string()),
        ("com.docker.swarm.task", String::new()),
        ("com.docker.swarm.task.name", task.name()),
        ("com.docker.swarm.node.id", task.node_id.to_string()),
        ("com.docker.swarm.service.id", task.service_id.to_string()),
        ("com.docker.swarm.service.name", task.service_name.clone()),
        ("io.shoal.node.hostname", node_hostname.to_owned()),
        (IMAGE_LABEL, image.id.to_string()),
        (IMAGE_NAME_LABEL, task.spec.container.image.clone()),
    ] {
        labels.insert(key.to_owned(), value);
    }
    labels
}

/// Docker's rule: a command replaces the image's entrypoint and drops its command; arguments replace its command.
fn args(spec: &ContainerSpec, image: &Image) -> Result<Vec<String>, ContainerError> {
    let (entrypoint, command) = match (spec.command.is_empty(), spec.args.is_empty()) {
        (false, _) => (&spec.command, &spec.args),
        (true, false) => (&image.config.entrypoint, &spec.args),
        (true, true) => (&image.config.entrypoint, &image.config.cmd),
    };
    let args: Vec<String> = entrypoint.iter().chain(command).cloned().collect();
    if args.is_empty() { Err(ContainerError::NoCommand) } else { Ok(args) }
}

/// The image's variables, those of the service over them; each keeps its place.
fn env(image: &[String], service: &[String]) -> Vec<String> {
    let key = |entry: &str| entry.split_once('=').map_or(entry.to_owned(), |(key, _)| key.to_owned());
    let mut merged: Vec<String> = Vec::with_capacity(image.len() + service.len());
    for entry in image.iter().chain(service) {
        match merged.iter().position(|before| key(before) == key(entry)) {
            Some(place) => merged[place].clone_from(entry),
            None => merged.push(entry.clone()),
        }
    }
    // `KEY` without a value unsets it, as with Docker.
    merged.retain(|entry| entry.contains('='));
    merged
}

/// The service's mounts and, where those leave room, the image's volumes; what lies in another after it, as Docker
/// sorts them.
fn mounts(spec: &ContainerSpec, of_image: &[String]) -> Result<Vec<RuntimeMount>, ContainerError> {
    let mut mounts = spec.mounts.iter().map(mount).collect::<Result<Vec<_>, _>>()?;
    for target in of_image {
        let target = PathBuf::from("/").join(target);
        let same = |mount: &RuntimeMount| mount.target.components().eq(target.components());
        if !mounts.iter().any(same) {
            let kind = RuntimeMountKind::Volume(VolumeMount { copy: true, ..VolumeMount::default() });
            mounts.push(RuntimeMount { kind, target, readonly: false });
        }
    }
    mounts.sort_by_key(|mount| mount.target.components().count());
    Ok(mounts)
}

/// Secrets and configs as files, in the order of their targets' depth; `payload` has the bytes of each.
pub(super) fn private_files(
    spec: &ContainerSpec,
    secret: impl Fn(&str) -> Option<Vec<u8>>,
    config: impl Fn(&str) -> Option<Vec<u8>>,
) -> Option<Vec<PrivateFile>> {
    let file = |reference: &PayloadReference, target: Option<String>, data: Option<Vec<u8>>| {
        let number = |text: &str| text.parse().unwrap_or(0);
        Some(PrivateFile {
            target: PathBuf::from(target?),
            uid: number(&reference.uid),
            gid: number(&reference.gid),
            mode: reference.mode & 0o7777,
            data: data?,
        })
    };
    let secrets = spec.secrets.iter().map(|s| file(s, s.secret_path(), secret(&s.id)));
    let configs = spec.configs.iter().map(|c| file(c, c.config_path(), config(&c.id)));
    secrets.chain(configs).collect()
}

fn mount(mount: &Mount) -> Result<RuntimeMount, ContainerError> {
    let kind = match mount.kind() {
        MountKind::Bind => RuntimeMountKind::Bind {
            source: PathBuf::from(&mount.source),
            recursive: !mount.non_recursive,
            readonly_below: !mount.read_only_non_recursive,
            propagation: propagation(&mount.propagation)?,
        },
        MountKind::Tmpfs => RuntimeMountKind::Tmpfs {
            size: (mount.tmpfs_size > 0).then_some(mount.tmpfs_size),
            mode: (mount.tmpfs_mode > 0).then_some(mount.tmpfs_mode),
        },
        MountKind::Volume => RuntimeMountKind::Volume(VolumeMount {
            name: mount.source.clone(),
            driver: mount.volume_driver.clone(),
            options: mount.volume_options.clone(),
            labels: mount.volume_labels.clone(),
            copy: !mount.no_copy,
            subpath: PathBuf::from(&mount.subpath),
            source: PathBuf::new(),
        }),
        other => {
            return Err(ContainerError::Mount { kind: kind_name(other), reason: "not supported yet".into() });
        }
    };
    Ok(RuntimeMount { kind, target: PathBuf::from(&mount.target), readonly: mount.read_only })
}

fn kind_name(kind: MountKind) -> &'static str {
    match kind {
        MountKind::Bind => "bind",
        MountKind::Volume => "volume",
        MountKind::Tmpfs => "tmpfs",
        MountKind::NamedPipe => "npipe",
        MountKind::Cluster => "cluster",
        MountKind::Image => "image",
    }
}

fn propagation(text: &str) -> Result<Propagation, ContainerError> {
    Ok(match text {
        "" | "rprivate" => Propagation::RPrivate,
        "private" => Propagation::Private,
        "rslave" => Propagation::RSlave,
        "slave" => Propagation::Slave,
        "rshared" => Propagation::RShared,
        "shared" => Propagation::Shared,
        other => {
            let reason = format!("propagation {other:?} is not supported");
            return Err(ContainerError::Mount { kind: "bind", reason });
        }
    })
}

const HOST_RESOLV_CONF: &str = "/etc/resolv.conf";
const HOST_HOSTS: &str = "/etc/hosts";

/// The generated files. Tasks on no network of the cluster have no resolver of it, so that they get the host's files.
fn files(task: &Task, hostname: &str, mode: NetworkMode) -> EtcFiles {
    // What cannot be read is as empty as it would be on a host without the file.
    let of_host = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let spec = &task.spec.container;
    let hosts = match mode {
        NetworkMode::Host => hosts(task, of_host(HOST_HOSTS), hostname),
        NetworkMode::Cluster | NetworkMode::None => hosts(task, LOCALHOST.to_owned(), hostname),
    };
    let resolv_conf = match (mode, &spec.dns) {
        (NetworkMode::Cluster, Some(dns)) => overlay_net::resolv_conf(&dns.search, &dns.options),
        (NetworkMode::Cluster, None) => overlay_net::resolv_conf(&[], &[]),
        (_, dns) => foreign_resolv_conf(&of_host(HOST_RESOLV_CONF), &dns.clone().unwrap_or_default()),
    };
    EtcFiles { hosts, resolv_conf }
}

/// The names that every container knows.
const LOCALHOST: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\n\
                         ff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n";

fn hosts(task: &Task, mut text: String, hostname: &str) -> String {
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    for line in &task.spec.container.hosts {
        text.push_str(&line.replacen(' ', "\t", 1));
        text.push('\n');
    }
    if let Some(attachment) = task.attachments.first() {
        for address in [&attachment.address, &attachment.address6].into_iter().filter(|address| !address.is_empty()) {
            let address = address.split('/').next().unwrap_or_default();
            text.push_str(&format!("{address}\t{hostname}\n"));
        }
    }
    text
}

/// The host's `resolv.conf`, with what a service says instead of it; of each kind of line, the service's take the place
/// of the host's.
fn foreign_resolv_conf(of_host: &str, dns: &DnsConfig) -> String {
    let given = [
        ("nameserver", !dns.nameservers.is_empty()),
        ("search", !dns.search.is_empty()),
        ("options", !dns.options.is_empty()),
    ];
    let replaced =
        |line: &&str| given.iter().any(|(kind, given)| *given && line.split_whitespace().next() == Some(*kind));
    let mut lines: Vec<String> = of_host.lines().filter(|line| !replaced(line)).map(str::to_owned).collect();
    lines.extend(dns.nameservers.iter().map(|server| format!("nameserver {server}")));
    for (kind, words) in [("search", &dns.search), ("options", &dns.options)] {
        if !words.is_empty() {
            lines.push(format!("{kind} {}", words.join(" ")));
        }
    }
    lines.into_iter().map(|line| line + "\n").collect()
}

fn resources(task: &Task) -> Resources {
    let some = |amount: u64| (amount > 0).then(|| i64::try_from(amount).unwrap_or(i64::MAX));
    let (limits, reserved) = (task.spec.resources.limits, task.spec.resources.reservations);
    Resources {
        cpu_limit_nanos: some(limits.nano_cpus),
        cpu_reservation_nanos: some(reserved.nano_cpus),
        memory_limit: some(limits.memory_bytes),
        memory_reservation: some(reserved.memory_bytes),
        pids_limit: some(limits.pids),
        ..Resources::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(of: &[&str]) -> Vec<String> {
        of.iter().map(|s| (*s).to_owned()).collect()
    }

    #[test]
    fn the_services_variables_win_and_keep_their_place() {
        let merged = env(&strings(&["PATH=/bin", "A=1", "B=2"]), &strings(&["A=3", "C=4", "B"]));
        assert_eq!(merged, strings(&["PATH=/bin", "A=3", "C=4"]));
    }

    #[test]
    fn tasks_on_no_network_of_the_cluster_have_the_hosts_name_servers() {
        let of_host = "# by hand\nnameserver 192.0.2.1\nsearch example.org\noptions ndots:2";
        assert_eq!(foreign_resolv_conf(of_host, &DnsConfig::default()), format!("{of_host}\n"));
        let dns =
            DnsConfig { nameservers: strings(&["192.0.2.7"]), options: strings(&["rotate"]), ..DnsConfig::default() };
        let expected = "# by hand\nsearch example.org\nnameserver 192.0.2.7\noptions rotate\n";
        assert_eq!(foreign_resolv_conf(of_host, &dns), expected);
    }

    #[test]
    fn privileges_become_confinement() {
        let custom = Privileges {
            seccomp_mode: "custom".into(),
            seccomp_profile: b"{}".to_vec(),
            selinux_label: strings(&["", "", "web_t", ""]),
            ..Privileges::default()
        };
        assert_eq!(seccomp(&custom), Ok(Seccomp::Custom("{}".into())));
        assert_eq!(selinux(&custom), Some(SelinuxLabel { kind: "web_t".into(), ..SelinuxLabel::default() }));
        assert_eq!(selinux(&Privileges { selinux_disabled: true, ..custom.clone() }), None);
        let broken = Privileges { seccomp_profile: vec![0xff], ..custom };
        assert_eq!(seccomp(&broken), Err(ContainerError::SeccompProfile));
        assert_eq!(seccomp(&Privileges::default()), Ok(Seccomp::Default));
        let off = Privileges { seccomp_mode: "unconfined".into(), ..Privileges::default() };
        assert_eq!(seccomp(&off), Ok(Seccomp::Unconfined));
    }

    #[test]
    fn mounts_come_in_order_and_the_images_volumes_where_nothing_else_is() {
        let of = |kind: MountKind, source: &str, target: &str| {
            let mut mount = Mount { source: source.into(), target: target.into(), ..Mount::default() };
            mount.set_kind(kind);
            mount
        };
        let spec = ContainerSpec {
            mounts: vec![
                of(MountKind::Volume, "deep", "/a/b/c"),
                of(MountKind::Tmpfs, "", "/a"),
                of(MountKind::Bind, "/srv", "/data/"),
            ],
            ..ContainerSpec::default()
        };
        let mounts = mounts(&spec, &strings(&["/data", "/a/b", "cache"])).unwrap();
        let shown: Vec<String> = mounts
            .iter()
            .map(|mount| match &mount.kind {
                RuntimeMountKind::Volume(volume) => format!("volume {:?} {}", volume.name, mount.target.display()),
                _ => mount.target.display().to_string(),
            })
            .collect();
        assert_eq!(shown, ["/a", "/data/", "volume \"\" /cache", "volume \"\" /a/b", "volume \"deep\" /a/b/c"]);
    }

    #[test]
    fn secrets_and_configs_become_files() {
        let reference = |id: &str, file: &str| PayloadReference {
            id: id.into(),
            file: file.into(),
            uid: "7".into(),
            mode: 0o440,
            ..PayloadReference::default()
        };
        let spec = ContainerSpec {
            secrets: vec![reference("s", "key")],
            configs: vec![reference("c", "etc/app"), reference("c", "/x")],
            ..ContainerSpec::default()
        };
        let have = |wanted: &'static str| move |id: &str| (id == wanted).then(|| id.as_bytes().to_vec());
        let files = private_files(&spec, have("s"), have("c")).unwrap();
        let shown: Vec<(String, u32, u32, u32)> =
            files.iter().map(|f| (f.target.display().to_string(), f.uid, f.gid, f.mode)).collect();
        let file = |target: &str| (target.to_owned(), 7, 0, 0o440);
        assert_eq!(shown, [file("/run/secrets/key"), file("/etc/app"), file("/x")]);
        assert_eq!(private_files(&spec, have("other"), have("c")), None);
    }

    #[test]
    fn an_attempt_has_its_own_container() {
        let task = Task { id: deploy::model::TaskId::new("t"), ..Task::default() };
        assert_eq!(container_id(&task, 0).len(), 64);
        assert_ne!(container_id(&task, 0), container_id(&task, 1));
    }
}
