//! A daemon as a process of its own, which can be killed like one: it obeys lines on its standard input.
//!
//! `<number> create <id> <words of the payload>`, `<number> start <id>`, `<number> signal <id> <signal>`,
//! `<number> delete <id>`, `<number> list`; answered, when it is done and in any order, with `<number> ok <text>` or
//! `<number> failed <why>`.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use runtime::{ContainerConfig, LogConfig, Runtime, RuntimeConfig, Status};

use super::fixture::chain;

/// The daemon's side: `engine <data> <run> <engine id> <image>`.
pub fn run(args: &[String]) -> ExitCode {
    let [data, run, engine_id, image] = args else { return ExitCode::from(2) };
    let config = RuntimeConfig {
        data_dir: data.into(),
        run_dir: run.into(),
        engine_id: engine_id.clone(),
        shim_exe: std::env::current_exe().unwrap(),
    };
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let runtime = match tokio.block_on(Runtime::open(config)) {
        Ok(runtime) => runtime,
        Err(error) => {
            println!("0 failed {}", chain(&error));
            return ExitCode::FAILURE;
        }
    };
    println!("0 ok");
    for line in std::io::stdin().lines() {
        let Ok(line) = line else { break };
        let (runtime, image) = (runtime.clone(), PathBuf::from(image));
        tokio.spawn(async move {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            let answer = match obey(&runtime, &image, &words[1..]).await {
                Ok(text) => format!("{} ok {text}\n", words[0]),
                Err(why) => format!("{} failed {why}\n", words[0]),
            };
            let _ = std::io::stdout().write_all(answer.as_bytes());
        });
    }
    ExitCode::SUCCESS
}

async fn obey(runtime: &Runtime, image: &Path, words: &[String]) -> Result<String, String> {
    let id = words.get(1).cloned().unwrap_or_default();
    let outcome = match words[0].as_str() {
        "create" => {
            let payload = ["/payload".to_owned(), "payload".to_owned()].into_iter();
            let config = ContainerConfig {
                id,
                layers: vec![image.to_owned()],
                args: payload.chain(words[2..].iter().cloned()).collect(),
                log: LogConfig { max_size: 64 << 10, max_files: 1000, ..LogConfig::default() },
                ..ContainerConfig::default()
            };
            runtime.create(config).await.map(drop)
        }
        "start" => runtime.start(&id).await,
        "signal" => runtime.signal(&id, words[2].parse().unwrap()).await,
        "delete" => runtime.delete(&id).await,
        "list" => {
            let all = runtime.list().await;
            let shown = all.iter().map(|state| {
                let status = match &state.status {
                    Status::Created => "created".to_owned(),
                    Status::Running => "running".to_owned(),
                    Status::Exited(exit) => format!("exited-{}", exit.code),
                };
                format!("{}={status}/{}/{:?}", state.id, state.pid.unwrap_or(0), state.started_at)
            });
            return Ok(shown.collect::<Vec<_>>().join(" "));
        }
        other => panic!("unknown command {other}"),
    };
    outcome.map(|()| String::new()).map_err(|error| chain(&error))
}

/// The test's side.
pub struct Engine {
    child: Child,
    stdin: ChildStdin,
    answers: Receiver<(u64, Result<String, String>)>,
    early: BTreeMap<u64, Result<String, String>>,
    next: u64,
}

/// What an operation came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Done(String),
    Failed(String),
    /// The daemon was killed before it answered.
    Unknown,
}

impl Engine {
    /// Starts a daemon from this binary, and waits until it has adopted what there is.
    #[track_caller]
    pub fn start(exe: &Path, config: &RuntimeConfig, image: &Path) -> Engine {
        let mut child = Command::new(exe)
            .arg("engine")
            .args([&config.data_dir, &config.run_dir])
            .arg(&config.engine_id)
            .arg(image)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (sender, answers) = channel();
        // Ends with the daemon's output.
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let mut words = line.splitn(3, ' ');
                let number = words.next().and_then(|number| number.parse().ok()).unwrap_or(u64::MAX);
                let (word, text) = (words.next().unwrap_or_default(), words.next().unwrap_or_default().to_owned());
                if sender.send((number, if word == "ok" { Ok(text) } else { Err(text) })).is_err() {
                    return;
                }
            }
        });
        let mut engine = Engine { child, stdin, answers, early: BTreeMap::new(), next: 1 };
        assert_eq!(engine.answer(0), Outcome::Done(String::new()));
        engine
    }

    /// Gives an order without waiting for its outcome.
    pub fn order(&mut self, text: &str) -> u64 {
        let number = self.next;
        self.next += 1;
        // A daemon that was killed does not answer.
        let _ = writeln!(self.stdin, "{number} {text}");
        number
    }

    pub fn answer(&mut self, number: u64) -> Outcome {
        loop {
            if let Some(answer) = self.early.remove(&number) {
                return answer.map_or_else(Outcome::Failed, Outcome::Done);
            }
            match self.answers.recv_timeout(Duration::from_secs(60)) {
                Ok((number, answer)) => _ = self.early.insert(number, answer),
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return Outcome::Unknown,
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) => panic!("the daemon hangs"),
            }
        }
    }

    pub fn ask(&mut self, text: &str) -> Outcome {
        let number = self.order(text);
        self.answer(number)
    }

    /// Asks for what must succeed.
    #[track_caller]
    pub fn must(&mut self, text: &str) -> String {
        match self.ask(text) {
            Outcome::Done(answer) => answer,
            other => panic!("{text}: {other:?}"),
        }
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.kill();
    }
}
