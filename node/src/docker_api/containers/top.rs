//! `GET /containers/{id}/top`: Docker asks `ps` for it; here the columns of `ps` are made from `/proc`.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use axum::Json;
use axum::extract::{Path, State};
use runtime::Process;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::super::App;
use super::super::error::ApiError;
use super::super::extract::Params;
use super::find::{self, failed};
use crate::engine::Engine;

pub(in super::super) async fn top<E: Engine>(
    State(app): State<App<E>>,
    Path(id): Path<String>,
    params: Params,
) -> Result<Json<Value>, ApiError> {
    let columns = columns(params.get("ps_args").unwrap_or_default())?;
    let (containers, state) = find::find(&app, &id).await?;
    let processes = containers.runtime.processes(&state.id).await.map_err(|error| failed(&error))?;
    let stats = containers.runtime.stats(&state.id).await.map_err(|error| failed(&error))?;
    let users = tokio::fs::read_to_string("/etc/passwd").await.unwrap_or_default();
    let host = Host { users: users_by_id(&users), memory: stats.host_memory, now: SystemTime::now() };
    let rows = processes.iter().map(|process| columns.iter().map(|column| host.cell(*column, process)).collect());
    let mut titles: Vec<&str> = columns.iter().map(|column| column.title()).collect();
    if columns == FULL {
        // A name below, but that is what `ps -f` calls it.
        titles[0] = Column::Uid.title();
    }
    Ok(Json(json!({"Titles": titles, "Processes": rows.collect::<Vec<Vec<String>>>()})))
}

macro_rules! columns {
    ($($name:ident $title:literal $($key:literal)|+;)+) => {
        /// A column of `ps`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        enum Column { $($name,)+ }

        impl Column {
            fn title(self) -> &'static str {
                match self { $(Column::$name => $title,)+ }
            }

            /// By the names that `ps -o` knows.
            fn by_key(key: &str) -> Option<Column> {
                match key { $($($key)|+ => Some(Column::$name),)+ _ => None }
            }
        }

        const KEYS: &[&str] = &[$($($key,)+)+];
    };
}

columns! {
    Uid "UID" "uid";
    User "USER" "user" | "euser" | "uname";
    Pid "PID" "pid";
    Ppid "PPID" "ppid";
    Utilisation "C" "c";
    Cpu "%CPU" "%cpu" | "pcpu";
    Mem "%MEM" "%mem" | "pmem";
    Vsz "VSZ" "vsz" | "vsize";
    Rss "RSS" "rss";
    Tty "TTY" "tty" | "tt" | "tname";
    Stat "STAT" "stat" | "s" | "state";
    Nice "NI" "ni" | "nice";
    Threads "NLWP" "nlwp" | "thcount";
    Stime "STIME" "stime" | "bsdstart";
    Start "START" "start" | "start_time";
    Elapsed "ELAPSED" "etime";
    Time "TIME" "time" | "cputime";
    Name "COMMAND" "comm" | "ucmd" | "ucomm";
    Cmd "CMD" "cmd";
    Args "COMMAND" "args" | "command";
}

const FULL: [Column; 8] = [
    Column::User,
    Column::Pid,
    Column::Ppid,
    Column::Utilisation,
    Column::Stime,
    Column::Tty,
    Column::Time,
    Column::Cmd,
];
const BSD: [Column; 11] = [
    Column::User,
    Column::Pid,
    Column::Cpu,
    Column::Mem,
    Column::Vsz,
    Column::Rss,
    Column::Tty,
    Column::Stat,
    Column::Start,
    Column::Time,
    Column::Args,
];

/// What `ps` would print with these arguments.
fn columns(arguments: &str) -> Result<Vec<Column>, ApiError> {
    let words: Vec<&str> = arguments.split_whitespace().collect();
    match words.as_slice() {
        [] | ["-ef" | "-Af" | "-f" | "-fe"] => return Ok(FULL.to_vec()),
        ["aux" | "-aux" | "auxww" | "u" | "axu"] => return Ok(BSD.to_vec()),
        _ => {}
    }
    let mut chosen = Vec::new();
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        let list = match *word {
            "-e" | "-A" | "ax" | "-w" | "-ww" => continue,
            "-o" | "o" | "-eo" | "-Ao" | "axo" | "-axo" => rest.next().copied().unwrap_or_default(),
            word => word.strip_prefix("-o").unwrap_or_default(),
        };
        for key in list.split(',') {
            let key = key.trim_end_matches('=').to_ascii_lowercase();
            chosen.push(Column::by_key(&key).ok_or_else(|| refused(arguments))?);
        }
    }
    if chosen.is_empty() { Err(refused(arguments)) } else { Ok(chosen) }
}

fn refused(arguments: &str) -> ApiError {
    let shown: String = arguments.chars().take(80).collect();
    ApiError::invalid(format!(
        "ps_args {shown:?} is not supported: give -ef, aux, or -o with columns out of {}",
        KEYS.join(",")
    ))
}

fn users_by_id(passwd: &str) -> BTreeMap<u32, String> {
    let mut users = BTreeMap::new();
    for line in passwd.lines() {
        let mut fields = line.split(':');
        if let (Some(name), Some(uid)) = (fields.next(), fields.nth(1).and_then(|uid| uid.parse().ok())) {
            users.entry(uid).or_insert_with(|| name.to_owned());
        }
    }
    users
}

/// What `ps` knows beside the process.
struct Host {
    /// Of the host: a container's own users are another matter, as with Docker.
    users: BTreeMap<u32, String>,
    memory: u64,
    now: SystemTime,
}

impl Host {
    fn cell(&self, column: Column, process: &Process) -> String {
        let age = self.now.duration_since(process.started_at).unwrap_or_default();
        let cpu_percent = process.cpu.as_secs_f64() * 100.0 / age.as_secs_f64().max(0.01);
        match column {
            Column::Uid => process.uid.to_string(),
            Column::User => self.users.get(&process.uid).cloned().unwrap_or_else(|| process.uid.to_string()),
            Column::Pid => process.pid.to_string(),
            Column::Ppid => process.parent.to_string(),
            Column::Utilisation => format!("{:.0}", cpu_percent.min(99.0).floor()),
            Column::Cpu => format!("{cpu_percent:.1}"),
            Column::Mem => format!("{:.1}", process.resident_bytes as f64 * 100.0 / self.memory.max(1) as f64),
            Column::Vsz => (process.virtual_bytes >> 10).to_string(),
            Column::Rss => (process.resident_bytes >> 10).to_string(),
            Column::Tty => terminal(process.tty),
            Column::Stat => process.state.to_string(),
            Column::Nice => process.nice.to_string(),
            Column::Threads => process.threads.to_string(),
            Column::Stime | Column::Start => clock(process.started_at, age),
            Column::Elapsed => elapsed(age),
            Column::Time => hours(process.cpu),
            Column::Name => process.name.clone(),
            Column::Cmd | Column::Args => process.command.clone(),
        }
    }
}

/// `pts/0`, `?`.
fn terminal(device: i32) -> String {
    let device = device.cast_unsigned();
    let (major, minor) = ((device >> 8) & 0xfff, (device & 0xff) | ((device >> 12) & 0xfff00));
    match major {
        136..=143 => format!("pts/{}", (major - 136) * 256 + minor),
        4 => format!("tty{minor}"),
        _ => "?".to_owned(),
    }
}

/// `14:05` for today, `Nov20` before that; in UTC.
fn clock(at: SystemTime, age: Duration) -> String {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let at = OffsetDateTime::from(at);
    if age < Duration::from_secs(86_400) {
        return format!("{:02}:{:02}", at.hour(), at.minute());
    }
    let month = MONTHS.get(usize::from(u8::from(at.month())) - 1).copied().unwrap_or_default();
    format!("{month}{:02}", at.day())
}

/// `00:00:12`
fn hours(length: Duration) -> String {
    let seconds = length.as_secs();
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// `2-03:04:05`, `03:04:05`, `04:05`
fn elapsed(length: Duration) -> String {
    let seconds = length.as_secs();
    let (days, hours, minutes, seconds) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    match (days, hours) {
        (0, 0) => format!("{minutes:02}:{seconds:02}"),
        (0, _) => format!("{hours:02}:{minutes:02}:{seconds:02}"),
        _ => format!("{days}-{hours:02}:{minutes:02}:{seconds:02}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(arguments: &str, expected: Option<&[Column]>) {
        assert_eq!(columns(arguments).ok().as_deref(), expected, "{arguments}");
    }

    #[test]
    fn what_people_give_to_ps() {
        check("", Some(&FULL));
        check("-ef", Some(&FULL));
        check("aux", Some(&BSD));
        check("-o pid,comm", Some(&[Column::Pid, Column::Name]));
        check("-eo pid=,%cpu -o args", Some(&[Column::Pid, Column::Cpu, Column::Args]));
        check("-opid", Some(&[Column::Pid]));
        for bad in ["-o", "-o nothing", "--forest", "-Z", "-o pid,,", "; rm -rf /"] {
            check(bad, None);
        }
        assert!(columns("-Z").unwrap_err().message.contains("give -ef, aux, or -o"));
    }

    #[test]
    fn cells() {
        assert_eq!((terminal(0).as_str(), terminal(136 << 8 | 3).as_str()), ("?", "pts/3"));
        assert_eq!(hours(Duration::from_secs(3_723)), "01:02:03");
        assert_eq!(elapsed(Duration::from_secs(65)), "01:05");
        assert_eq!(elapsed(Duration::from_secs(90_061)), "1-01:01:01");
        assert_eq!(users_by_id("root:x:0:0::/:\nbad\nother:x:0:0::/:\n")[&0], "root");
    }
}
