use super::*;

#[track_caller]
fn check<T: PartialEq + std::fmt::Debug>(parse: impl Fn(&str) -> Result<T, String>, text: &str, expected: Option<T>) {
    assert_eq!(parse(text).ok(), expected, "{text:?}");
}

#[test]
fn durations() {
    check(duration, "0", Some(0));
    check(duration, "10s", Some(10_000_000_000));
    check(duration, "1m30s", Some(90_000_000_000));
    check(duration, "1.5s", Some(1_500_000_000));
    check(duration, "1h", Some(3_600_000_000_000));
    check(duration, "500ms", Some(500_000_000));
    check(duration, ".5s", Some(500_000_000));
    check(duration, "100us", Some(100_000));
    for bad in ["", "10", "s", "10x", "-1s", "1s2", "1..5s", "10 s", "9999999999h", "99999999999999999999s"] {
        check(duration, bad, None);
    }
}

#[test]
fn sizes() {
    check(memory, "64M", Some(64 << 20));
    check(memory, "1.5g", Some(3 << 29));
    check(memory, "512k", Some(512 << 10));
    check(memory, "100", Some(100));
    check(memory, "100b", Some(100));
    check(memory, "1GiB", Some(1 << 30));
    check(memory, "1 MB", Some(1 << 20));
    for bad in ["", "M", "-1M", "1x", "1e3", "99999999999t", "0x10"] {
        check(memory, bad, None);
    }
}

#[test]
fn numbers_of_cpus() {
    check(cpus, "0.5", Some(500_000_000));
    check(cpus, ".5", Some(500_000_000));
    check(cpus, "2", Some(2_000_000_000));
    check(cpus, "0.000000001", Some(1));
    for bad in ["", "-1", "x", "1e3", "."] {
        check(cpus, bad, None);
    }
}

#[test]
fn ratios() {
    check(ratio, "0.2", Some(0.2));
    for bad in ["", "1.1", "-0.1", "NaN", "inf"] {
        check(ratio, bad, None);
    }
}

#[test]
fn environments() {
    let given = ["A=1", "B", "C", "A=2", "D=x=y", "E="].map(str::to_owned);
    let filled = fill_env(&given, |key| (key == "B").then(|| "here".to_owned()));
    assert_eq!(filled, ["A=2", "B=here", "D=x=y", "E="]);
    assert!(env("=x").is_err());
    assert!(env("").is_err());
}

#[test]
fn labels_have_a_key() {
    let parse = |text: &str| text.parse::<KeyValue>().map(|l| (l.key, l.value));
    check(parse, "a=b=c", Some(("a".into(), "b=c".into())));
    check(parse, "a", Some(("a".into(), String::new())));
    check(parse, "=b", None);
}

#[test]
fn lines_of_the_hosts_file() {
    check(hosts_entry, "db:10.0.0.1", Some("10.0.0.1 db".into()));
    check(hosts_entry, "db:[fe80::1]", Some("fe80::1 db".into()));
    check(hosts_entry, "db:fe80::1", Some("fe80::1 db".into()));
    for bad in ["db", ":10.0.0.1", "db:x", "a b:10.0.0.1"] {
        check(hosts_entry, bad, None);
    }
}

#[test]
fn ulimits() {
    let limits = |text: &str| ulimit(text).map(|u| (u.name.unwrap(), u.soft.unwrap(), u.hard.unwrap()));
    check(limits, "nofile=100:200", Some(("nofile".into(), 100, 200)));
    check(limits, "nproc=5", Some(("nproc".into(), 5, 5)));
    check(limits, "core=-1", Some(("core".into(), -1, -1)));
    for bad in ["nofile", "=1", "nofile=x", "nofile=2:1", "nofile=-1:5", "nofile=-2"] {
        check(limits, bad, None);
    }
}

#[test]
fn networks() {
    let parse = |text: &str| network(text).map(|n| (n.target.unwrap(), n.aliases.unwrap_or_default()));
    check(parse, "back", Some(("back".into(), vec![])));
    check(parse, "name=back,alias=a,alias=b", Some(("back".into(), vec!["a".into(), "b".into()])));
    for bad in ["", "alias=a", "name=", "name=x,foo=1"] {
        check(parse, bad, None);
    }
}

#[test]
fn capabilities() {
    check(capability, "net_admin", Some("CAP_NET_ADMIN".into()));
    check(capability, "CAP_CHOWN", Some("CAP_CHOWN".into()));
    check(capability, "all", Some("ALL".into()));
    check(capability, "net admin", None);
    check(capability, "", None);
}

#[test]
fn entry_points_are_split_as_a_shell_does() {
    let strings = |list: &[&str]| Some(list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>());
    check(words, "/bin/sh -c 'a  b' \"c \\\" d\" e\\ f ''", strings(&["/bin/sh", "-c", "a  b", "c \" d", "e f", ""]));
    check(words, "  ", strings(&[]));
    check(words, "'x", None);
    check(words, "x\\", None);
}

#[test]
fn sizes_and_durations_for_people() {
    assert_eq!(bytes(1536 << 10), "1.5MiB");
    assert_eq!(human_duration(90_000_000_000), "1m30s");
}
