//! The shape of the house, checked on its manifests and sources: which room may depend on which, and what pure code
//! may not even name.

use std::path::{Path, PathBuf};

/// Rooms that know nothing of each other.
const LEAVES: [&str; 5] = ["deploy", "raft", "gossip", "overlay-net", "runtime"];
/// Code that decides and touches nothing.
const PURE: [&str; 13] = [
    "deploy/src",
    "overlay-net/src/plan",
    "runtime/src/plan",
    "runtime/src/oci/args.rs",
    "runtime/src/oci/mounts.rs",
    "runtime/src/oci/options.rs",
    "runtime/src/oci/plan.rs",
    "runtime/src/oci/spec.rs",
    "runtime/src/volume/plan.rs",
    "node/src/agent/told.rs",
    "node/src/agent/health/machine.rs",
    "node/src/agent/plain/local",
    "node/src/agent/plain/policy.rs",
];
/// What pure code does not name, and why: input and output, clocks, chance, and maps whose order is chance.
const BANNED: [&str; 11] = [
    "tokio",
    "std::fs",
    "std::net",
    "std::process",
    "std::thread",
    "SystemTime",
    "Instant",
    "HashMap",
    "HashSet",
    "rand",
    "std::env",
];
/// Types of `std::net` that are values and open nothing.
const ADDRESSES: [&str; 6] = ["Ipv4Addr", "Ipv6Addr", "IpAddr", "SocketAddr", "SocketAddrV4", "AddrParseError"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace").to_path_buf()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All Rust sources below a path, or the path itself.
fn sources(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_path_buf()];
    }
    let mut found = Vec::new();
    let mut open = vec![path.to_path_buf()];
    while let Some(dir) = open.pop() {
        let entries = std::fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        for entry in entries {
            let path = entry.expect("a readable directory").path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|ext| ext == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Names of the packages that a manifest depends on, in whatever table and under whatever alias.
fn dependencies(manifest: &str) -> Vec<String> {
    let manifest: toml::Table = manifest.parse().expect("a manifest is TOML");
    let mut names = Vec::new();
    let mut tables = vec![&manifest];
    while let Some(table) = tables.pop() {
        for (key, value) in table {
            let toml::Value::Table(inner) = value else { continue };
            if key.ends_with("dependencies") {
                for (alias, detail) in inner {
                    let package = detail.get("package").and_then(toml::Value::as_str);
                    names.push(package.unwrap_or(alias).to_owned());
                    let path = detail.get("path").and_then(toml::Value::as_str);
                    names.extend(path.and_then(|p| Path::new(p).file_name()).map(|n| n.to_string_lossy().into_owned()));
                }
            } else if key == "target" || table.contains_key("dependencies") || key.starts_with("cfg(") {
                tables.push(inner);
            }
        }
    }
    names
}

/// The code of a source without its comments and strings, and without what is behind `#[cfg(test)]` at its end.
fn code(source: &str) -> Vec<(usize, String)> {
    let mut out = Vec::new();
    let mut in_block = false;
    for (number, line) in source.lines().enumerate() {
        // Tests stand at the end of a file, and may use what they like.
        if line.trim() == "#[cfg(test)]" && source.lines().nth(number + 1).is_some_and(|next| next.ends_with("{")) {
            break;
        }
        let mut kept = String::new();
        let mut chars = line.chars().peekable();
        let mut in_string = false;
        while let Some(c) = chars.next() {
            let next = chars.peek().copied();
            match (c, next) {
                ('*', Some('/')) if in_block => {
                    in_block = false;
                    chars.next();
                }
                _ if in_block => {}
                ('\\', _) if in_string => {
                    chars.next();
                }
                ('"', _) => in_string = !in_string,
                _ if in_string => {}
                ('/', Some('/')) => break,
                ('/', Some('*')) => {
                    in_block = true;
                    chars.next();
                }
                _ => kept.push(c),
            }
        }
        out.push((number + 1, kept));
    }
    out
}

/// Whether a line names a banned word, as a word of its own.
fn names(line: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back().is_some_and(part);
        let after = &line[at + word.len()..];
        let harmless = word == "std::net" && only_addresses(after);
        !before && !after.chars().next().is_some_and(part) && !harmless
    })
}

/// Whether what follows `std::net` names addresses alone.
fn only_addresses(after: &str) -> bool {
    let Some(rest) = after.strip_prefix("::") else { return false };
    let end = rest.find([';', '(', ')', '>', '<', '=', '.']).unwrap_or(rest.len());
    let words = rest[..end].split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty());
    // `Ipv4Addr::new` and `Ipv4Addr, u8` begin with what counts; a list in braces counts as a whole.
    let all: Vec<&str> = words.collect();
    match rest.starts_with('{') {
        true => all.iter().all(|word| ADDRESSES.contains(word)),
        false => all.first().is_some_and(|word| ADDRESSES.contains(word)),
    }
}

#[test]
fn leaves_do_not_depend_on_each_other() {
    for leaf in LEAVES {
        let found = dependencies(&read(&root().join(leaf).join("Cargo.toml")));
        assert!(!found.is_empty(), "{leaf} has no dependencies at all: the manifest was not understood");
        for other in LEAVES.iter().chain(&["node", "chaos-tests"]) {
            assert!(!found.iter().any(|name| name == other), "{leaf} depends on {other}");
        }
    }
}

#[test]
fn pure_code_names_nothing_impure() {
    let mut trouble = Vec::new();
    for place in PURE {
        let files = sources(&root().join(place));
        assert!(!files.is_empty(), "{place} has no sources");
        for file in files {
            if file.file_stem().is_some_and(|stem| stem == "tests" || stem == "fixture") {
                continue;
            }
            for (number, line) in code(&read(&file)) {
                for word in BANNED.iter().filter(|word| names(&line, word)) {
                    trouble.push(format!("{}:{number}: {word}", file.strip_prefix(root()).unwrap().display()));
                }
            }
        }
    }
    assert!(trouble.is_empty(), "pure code names what it must not:\n{}", trouble.join("\n"));
}

#[test]
fn the_checks_see_what_they_should() {
    let lines = code("use std::fs; // tokio\nlet x = \"rand\"; /* HashMap\n HashSet */ let y = z;\n");
    let text: Vec<&str> = lines.iter().map(|(_, line)| line.trim()).collect();
    assert_eq!(text, ["use std::fs;", "let x = ;", "let y = z;"]);
    for (line, word, expected) in [
        ("use std::fs::File;", "std::fs", true),
        ("tokio::spawn(x)", "tokio", true),
        ("let random = 1;", "rand", false),
        ("brand(1)", "rand", false),
        ("rand::random()", "rand", true),
        ("Instantly", "Instant", false),
        ("use std::net::Ipv4Addr;", "std::net", false),
        ("use std::net::{IpAddr, Ipv4Addr};", "std::net", false),
        ("use std::net::{IpAddr, TcpStream};", "std::net", true),
        ("std::net::UdpSocket::bind(a)", "std::net", true),
        ("fn f(a: std::net::Ipv4Addr, b: u8)", "std::net", false),
    ] {
        assert_eq!(names(line, word), expected, "{line}");
    }
    let manifest = "[dependencies]\nb = { package = \"raft\", version = \"1\" }\n\
        [target.'cfg(unix)'.dev-dependencies]\nc = { path = \"../gossip\" }\n[build-dependencies]\nd = \"1\"\n";
    let mut found = dependencies(manifest);
    found.sort();
    assert_eq!(found, ["c", "d", "gossip", "raft"]);
}
