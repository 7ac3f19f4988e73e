//! Containers that are started again.

use runtime::{Mount, MountKind, RuntimeError, Status, VolumeMount};

use super::fixture::{Fixture, chain};

pub const TESTS: &[(&str, fn())] = &[
    ("renew::what_it_wrote_is_there_again", what_it_wrote_is_there_again),
    ("renew::only_what_has_ended_and_lasts", only_what_has_ended_and_lasts),
    ("renew::a_label_is_changed_for_good", a_label_is_changed_for_good),
    ("renew::lost_records_do_not_take_it_along", lost_records_do_not_take_it_along),
];

fn renewed(fixture: &Fixture, id: &str) {
    let created = fixture.tokio.block_on(fixture.runtime().renew(id));
    created.unwrap_or_else(|error| panic!("renew: {}", chain(&error)));
}

fn start(fixture: &Fixture, id: &str) -> i32 {
    fixture.tokio.block_on(fixture.runtime().start(id)).unwrap_or_else(|error| panic!("start: {}", chain(&error)));
    fixture.wait(id).code
}

fn what_it_wrote_is_there_again() {
    let mut fixture = Fixture::new();
    let mut config =
        fixture.config("one", "ls /tmp then cat /vol/kept then write /tmp/a x then write /vol/kept y then exit 3");
    config.lasting = true;
    let kind = MountKind::Volume(VolumeMount { copy: true, ..VolumeMount::default() });
    config.mounts = vec![
        Mount { kind, target: "/vol".into(), readonly: false },
        Mount {
            kind: MountKind::Volume(VolumeMount { name: "tmp".into(), ..VolumeMount::default() }),
            target: "/tmp".into(),
            readonly: false,
        },
    ];
    let runtime = fixture.runtime();
    fixture.tokio.block_on(runtime.create(config)).unwrap();
    fixture.tokio.block_on(runtime.put_note("one", "health", b"of before".to_vec())).unwrap();
    assert_eq!(start(&fixture, "one"), 3);
    let before = fixture.tokio.block_on(runtime.list())[0].clone();
    drop(runtime);
    renewed(&fixture, "one");
    let now = fixture.tokio.block_on(fixture.runtime().list())[0].clone();
    assert_eq!((now.status, now.started_at), (Status::Created, None));
    assert_eq!((now.created_at, &now.labels), (before.created_at, &before.labels));
    assert_eq!(fixture.tokio.block_on(fixture.runtime().note("one", "health")).unwrap(), None);
    // A daemon that comes in between finds one that waits.
    fixture.die();
    fixture.open();
    assert_eq!(fixture.tokio.block_on(fixture.runtime().list())[0].status, Status::Created);
    assert_eq!(start(&fixture, "one"), 3);
    for _ in 0..3 {
        renewed(&fixture, "one");
        assert_eq!(start(&fixture, "one"), 3);
    }
    let output = fixture.output("one");
    // The log goes on, in a new file with each start; three are kept.
    assert_eq!(output.matches("ls /tmp: a\ny").count(), 3, "{output}");
    assert_eq!(output.matches("wrote /vol/kept\n").count(), 3, "{output}");
    fixture.tokio.block_on(fixture.runtime().delete("one")).unwrap();
    let volumes = fixture.runtime().volumes().list();
    assert_eq!(volumes.iter().map(|volume| volume.name.as_str()).collect::<Vec<_>>(), ["tmp"], "its own went with it");
    fixture.runtime().volumes().remove("tmp").unwrap();
    assert_eq!(fixture.leftovers(), Default::default());
}

fn a_label_is_changed_for_good() {
    let mut fixture = Fixture::new();
    let mut config = fixture.config("one", "sleep");
    config.lasting = true;
    config.labels.insert("kept".into(), "as it was".into());
    let created = config.clone();
    fixture.start(config);
    let set = |fixture: &Fixture, id: &str, value: &str| {
        fixture.tokio.block_on(fixture.runtime().set_label(id, "name", value))
    };
    let check = |fixture: &Fixture, value: &str| {
        let mut labels = created.labels.clone();
        labels.insert("name".into(), value.into());
        assert_eq!(fixture.tokio.block_on(fixture.runtime().list())[0].labels, labels);
        let config = fixture.tokio.block_on(fixture.runtime().inspect("one")).unwrap().config;
        assert_eq!(config, runtime::ContainerConfig { labels, ..created.clone() });
    };
    set(&fixture, "one", "first").unwrap();
    check(&fixture, "first");
    fixture.die();
    fixture.open();
    check(&fixture, "first");
    fixture.signal("one", runtime::Signal::KILL);
    fixture.wait("one");
    set(&fixture, "one", "second").unwrap();
    renewed(&fixture, "one");
    check(&fixture, "second");
    let missing = set(&fixture, "two", "third");
    assert!(matches!(missing, Err(RuntimeError::NotFound(_))), "{missing:?}");
    fixture.tokio.block_on(fixture.runtime().delete("one")).unwrap();
}

fn only_what_has_ended_and_lasts() {
    let fixture = Fixture::new();
    let runtime = fixture.runtime();
    let mut config = fixture.config("one", "write /kept x then sleep");
    config.lasting = true;
    fixture.start(config);
    let refused = fixture.tokio.block_on(runtime.renew("one"));
    assert!(matches!(refused, Err(RuntimeError::WrongState { status: "running", .. })), "{refused:?}");
    fixture.tokio.block_on(runtime.delete("one")).unwrap();
    let refused = fixture.tokio.block_on(runtime.renew("one"));
    assert!(matches!(refused, Err(RuntimeError::NotFound(_))), "{refused:?}");
    fixture.run(fixture.config("two", "exit 0"));
    let refused = fixture.tokio.block_on(runtime.renew("two"));
    assert!(matches!(refused, Err(RuntimeError::InvalidConfig(_))), "{refused:?}");
    // A source that is gone: it stays as it ended.
    let gone = tempfile::tempdir().unwrap();
    let mut config = fixture.config("three", "exit 5");
    config.lasting = true;
    config.mounts = vec![Mount {
        kind: MountKind::Bind {
            source: gone.path().into(),
            recursive: true,
            readonly_below: true,
            propagation: Default::default(),
        },
        target: "/srv".into(),
        readonly: false,
    }];
    fixture.run(config);
    drop(gone);
    fixture.tokio.block_on(runtime.renew("three")).unwrap_err();
    assert_eq!(fixture.wait("three").code, 5);
}

fn lost_records_do_not_take_it_along() {
    let mut fixture = Fixture::new();
    let mut config = fixture.config("one", "ls / then write /kept x then sleep");
    config.lasting = true;
    fixture.start(config);
    fixture.until_output("one", "wrote /kept\n");
    let runtime = fixture.runtime();
    fixture.tokio.block_on(runtime.stop("one", None, std::time::Duration::ZERO)).unwrap();
    drop(runtime);
    fixture.die();
    // As after a loss of power: what was not synced is gone.
    let dir = fixture.config.data_dir.join("containers/one");
    for name in ["process", "exit"] {
        std::fs::remove_file(dir.join(name)).unwrap();
    }
    fixture.open();
    assert!(fixture.wait("one").shim_lost);
    renewed(&fixture, "one");
    fixture.tokio.block_on(fixture.runtime().start("one")).unwrap();
    fixture.until_output("one", " kept ");
}
