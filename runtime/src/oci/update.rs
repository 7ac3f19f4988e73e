//! `update`: new limits for a container that lives, in the form of the specification or by single options.

use std::io::{self, Read};
use std::path::Path;

use super::args::{Global, Update};
use super::state;
use super::{Done, Failure};
use crate::plan::limits::oci::{LinuxPids, LinuxResources};

/// Nobody's limits are longer.
const MAX_RESOURCES: u64 = 4 << 20;

pub(super) fn update(global: &Global, wanted: &Update) -> Result<Done, Failure> {
    let resources = match &wanted.resources {
        Some(path) => read(path)?,
        None => single(&wanted.single)?,
    };
    let (entry, _lock) = state::take(&global.root, &wanted.id)?;
    if entry.process().is_none() {
        return Err(Failure::NotRunning(wanted.id.clone()));
    }
    entry.group()?.update(&resources)?;
    Ok(Done::Nothing)
}

fn read(path: &Path) -> Result<LinuxResources, Failure> {
    let bytes = if path == Path::new("-") {
        let mut bytes = Vec::new();
        let limited = io::stdin().lock().take(MAX_RESOURCES + 1).read_to_end(&mut bytes);
        limited.map_err(Failure::system("read the standard input"))?;
        if bytes.len() as u64 > MAX_RESOURCES {
            return Err(Failure::TooLarge { path: path.to_owned(), limit: MAX_RESOURCES });
        }
        bytes
    } else {
        state::read_bounded(path, MAX_RESOURCES)?
    };
    serde_json::from_slice(&bytes).map_err(|source| Failure::Syntax { path: path.to_owned(), source })
}

/// The limits of single options.
fn single(options: &[(&'static str, String)]) -> Result<LinuxResources, Failure> {
    let mut all = LinuxResources::default();
    for (name, value) in options {
        let (memory, cpu) = (all.memory.get_or_insert_default(), all.cpu.get_or_insert_default());
        match *name {
            "memory" => memory.limit = Some(bytes(name, value)?),
            "memory-reservation" => memory.reservation = Some(bytes(name, value)?),
            "memory-swap" => memory.swap = Some(bytes(name, value)?),
            "cpu-share" => cpu.shares = Some(number(name, value)?),
            "cpu-period" => cpu.period = Some(number(name, value)?),
            "cpu-quota" => cpu.quota = Some(number(name, value)?),
            "cpu-burst" => cpu.burst = Some(number(name, value)?),
            "cpu-rt-period" => cpu.realtime_period = Some(number(name, value)?),
            "cpu-rt-runtime" => cpu.realtime_runtime = Some(number(name, value)?),
            "cpu-idle" => cpu.idle = Some(number(name, value)?),
            "cpuset-cpus" => cpu.cpus = Some(value.clone()),
            "cpuset-mems" => cpu.mems = Some(value.clone()),
            "pids-limit" => all.pids = Some(LinuxPids { limit: Some(number(name, value)?) }),
            "blkio-weight" => all.block_io.get_or_insert_default().weight = Some(number(name, value)?),
            other => return Err(Failure::Usage(format!("--{other} is not supported"))),
        }
    }
    Ok(all)
}

/// A number of bytes, with a unit of 1024 as in `512m`.
fn bytes(name: &str, value: &str) -> Result<i64, Failure> {
    let lower = value.to_ascii_lowercase();
    let digits = lower.trim_end_matches(|unit: char| unit.is_ascii_alphabetic());
    let shift = match lower.get(digits.len()..).unwrap_or_default() {
        "" | "b" => 0,
        "k" | "kb" => 10,
        "m" | "mb" => 20,
        "g" | "gb" => 30,
        "t" | "tb" => 40,
        _ => return Err(Failure::Usage(format!("--{name} {value:?}: unknown unit"))),
    };
    let count: i64 = number(name, digits)?;
    count.checked_mul(1 << shift).ok_or_else(|| Failure::Usage(format!("--{name} {value:?}: out of range")))
}

fn number<T: std::str::FromStr>(name: &str, value: &str) -> Result<T, Failure> {
    value.parse().map_err(|_| Failure::Usage(format!("--{name} {value:?}: no number, or out of range")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_limits() {
        let options = [
            ("memory", "2G"),
            ("memory-swap", "-1"),
            ("cpu-share", "7"),
            ("cpuset-cpus", "0-1"),
            ("pids-limit", "9"),
            ("blkio-weight", "10"),
        ];
        let options: Vec<_> = options.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        let all = single(&options).unwrap();
        let memory = all.memory.unwrap();
        assert_eq!((memory.limit, memory.swap), (Some(2 << 30), Some(-1)));
        let cpu = all.cpu.unwrap();
        assert_eq!((cpu.shares, cpu.cpus.as_deref()), (Some(7), Some("0-1")));
        assert_eq!((all.pids.unwrap().limit, all.block_io.unwrap().weight), (Some(9), Some(10)));
        for bad in [
            ("cpu-share", "-1"),
            ("memory", "1x"),
            ("memory", "9999999999g"),
            ("memory", "g"),
            ("blkio-weight", "70000"),
            ("frob", "1"),
        ] {
            assert!(single(&[(bad.0, bad.1.to_owned())]).is_err(), "{bad:?}");
        }
    }
}
