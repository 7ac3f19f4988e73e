//! A small client of one host's API, over its unix socket: one connection a request.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::UnixStream;

use super::HostError;
use crate::docker_api::ErrorWord;

/// What is sent: in memory or as it comes.
pub type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// An ordinary request takes so long at the most; a join may take 20 s on its own.
const LIMIT: Duration = Duration::from_secs(30);
/// Largest answer that is read, in bytes.
const MAX_ANSWER: usize = 64 << 20;
/// Between two looks at something that is waited for.
const LOOK: Duration = Duration::from_millis(10);

/// A client of one host's API. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Api {
    host: String,
    socket: PathBuf,
}

/// One task as `GET /tasks` tells it, as far as tests and the demo look at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskView {
    /// Its id.
    pub id: String,
    /// Its slot; 0 for a task of a global service.
    pub slot: u64,
    /// Its host's id; empty while it has none.
    pub node: String,
    /// Docker's lower-case word, for example `running`.
    pub state: String,
    /// What the cluster wants it to be.
    pub desired: String,
    /// Its container's id; empty while it has none.
    pub container: String,
    /// The process id of its container on its host; 0 while there is none.
    pub pid: u64,
    /// Why it failed or is not placed.
    pub err: String,
}

impl TaskView {
    fn of(w: &Value) -> TaskView {
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let container = &w["Status"]["ContainerStatus"];
        TaskView {
            id: text(&w["ID"]),
            slot: w["Slot"].as_u64().unwrap_or(0),
            node: text(&w["NodeID"]),
            state: text(&w["Status"]["State"]),
            desired: text(&w["DesiredState"]),
            container: text(&container["ContainerID"]),
            pid: container["PID"].as_u64().unwrap_or(0),
            err: text(&w["Status"]["Err"]),
        }
    }

    /// Whether it runs and is meant to.
    #[must_use]
    pub fn serves(&self) -> bool {
        self.state == "running" && self.desired == "running"
    }
}

/// How fresh an answer must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// As of now; waits for a leader.
    Linearizable,
    /// What this manager knows; answers at once.
    Local,
}

/// Percent-encodes a value for a query.
#[must_use]
pub fn encode(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

fn in_memory(bytes: Vec<u8>) -> Body {
    Full::new(Bytes::from(bytes)).map_err(|never| match never {}).boxed_unsync()
}

impl Api {
    /// A client of the daemon that serves at `socket`; `host` is for messages.
    #[must_use]
    pub fn new(host: &str, socket: &Path) -> Api {
        Api { host: host.to_owned(), socket: socket.to_path_buf() }
    }

    /// The socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Sends one request and answers status and body, whatever they are.
    ///
    /// # Errors
    /// [`HostError::Unreachable`], also when `limit` runs out.
    pub async fn exchange(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Body,
        limit: Duration,
    ) -> Result<(u16, Bytes), HostError> {
        let request = format!("{method} {path}");
        let failed =
            |reason: String| HostError::Unreachable { host: self.host.clone(), request: request.clone(), reason };
        let exchange = async {
            let stream = UnixStream::connect(&self.socket).await.map_err(|e| e.to_string())?;
            let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
            let (mut sender, connection) = handshake.map_err(|e| crate::chain(&e))?;
            let message = Request::builder()
                .method(method.clone())
                .uri(path)
                .header("Host", "shoal")
                .header("Content-Type", content_type)
                .body(body)
                .map_err(|e| e.to_string())?;
            // Both run in this future, so that nothing goes on after it was dropped.
            let answer = async {
                let answer = sender.send_request(message).await.map_err(|e| crate::chain(&e))?;
                let status = answer.status().as_u16();
                let bytes = Limited::new(answer.into_body(), MAX_ANSWER).collect().await.map_err(|e| e.to_string())?;
                Ok((status, bytes.to_bytes()))
            };
            tokio::pin!(answer);
            tokio::select! {
                biased;
                done = &mut answer => done,
                // The connection may end before its answer was handed over.
                ended = connection => match ended {
                    Ok(()) => answer.await,
                    Err(e) => Err(crate::chain(&e)),
                },
            }
        };
        match tokio::time::timeout(limit, exchange).await {
            Ok(done) => done.map_err(failed),
            Err(_) => Err(failed(format!("no answer within {} s", limit.as_secs_f64()))),
        }
    }

    async fn json(&self, method: Method, path: &str, body: Body, limit: Duration) -> Result<Value, HostError> {
        self.json_of(method, path, "application/json", body, limit).await
    }

    async fn json_of(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Body,
        limit: Duration,
    ) -> Result<Value, HostError> {
        let request = format!("{method} {path}");
        let (status, bytes) = self.exchange(method, path, content_type, body, limit).await?;
        let value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        if status < 300 {
            return Ok(value);
        }
        let message =
            value["message"].as_str().map_or_else(|| String::from_utf8_lossy(&bytes).into_owned(), Into::into);
        Err(HostError::Refused { host: self.host.clone(), request, status, message, word: ErrorWord::of(&value) })
    }

    /// `GET`, with JSON as the answer; null where there is none.
    ///
    /// # Errors
    /// As [`Api::exchange`], and [`HostError::Refused`] for a status of 300 or more.
    pub async fn get(&self, path: &str) -> Result<Value, HostError> {
        self.json(Method::GET, path, in_memory(Vec::new()), LIMIT).await
    }

    /// `POST` with JSON.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, HostError> {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        self.json(Method::POST, path, in_memory(body), LIMIT).await
    }

    /// `DELETE`.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub async fn delete(&self, path: &str) -> Result<Value, HostError> {
        self.json(Method::DELETE, path, in_memory(Vec::new()), LIMIT).await
    }

    /// `POST` of an archive that is sent as it comes.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub async fn upload(&self, path: &str, body: Body, limit: Duration) -> Result<Value, HostError> {
        self.json_of(Method::POST, path, "application/x-tar", body, limit).await
    }

    /// Makes a cluster; answers this node's id.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub async fn init(&self, advertise: &str) -> Result<String, HostError> {
        let body = json!({"ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": advertise});
        Ok(self.post("/swarm/init", &body).await?.as_str().unwrap_or_default().to_owned())
    }

    /// Joins the cluster of the manager at `remote` (`ip:port`); answers when joined.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub async fn join(&self, advertise: &str, remote: &str, token: &str) -> Result<(), HostError> {
        let body = json!({
            "ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": advertise, "RemoteAddrs": [remote], "JoinToken": token,
        });
        self.post("/swarm/join", &body).await.map(drop)
    }

    /// The tokens that make a worker and a manager.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub async fn tokens(&self) -> Result<(String, String), HostError> {
        let swarm = self.get("/swarm").await?;
        let token = |role: &str| swarm["JoinTokens"][role].as_str().unwrap_or_default().to_owned();
        Ok((token("Worker"), token("Manager")))
    }

    /// The node's id; empty outside of a cluster.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub async fn node_id(&self) -> Result<String, HostError> {
        Ok(self.get("/info").await?["Swarm"]["NodeID"].as_str().unwrap_or_default().to_owned())
    }

    /// All nodes, as Docker tells them.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub async fn nodes(&self, freshness: Freshness) -> Result<Vec<Value>, HostError> {
        let path = match freshness {
            Freshness::Linearizable => "/nodes",
            Freshness::Local => "/nodes?consistency=local",
        };
        Ok(list(self.get(path).await?))
    }

    /// The hostname of the leader, as this manager knows it.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub async fn leader(&self) -> Result<Option<String>, HostError> {
        let nodes = self.nodes(Freshness::Local).await?;
        let leader = nodes.iter().find(|node| node["ManagerStatus"]["Leader"] == true);
        Ok(leader.and_then(|node| node["Description"]["Hostname"].as_str()).map(str::to_owned))
    }

    /// The tasks of a service, also those that have ended, by slot.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub async fn tasks(&self, service: &str, freshness: Freshness) -> Result<Vec<TaskView>, HostError> {
        let filters = encode(&json!({"service": {service: true}}).to_string());
        let more = if freshness == Freshness::Local { "&consistency=local" } else { "" };
        let tasks = self.get(&format!("/tasks?filters={filters}{more}")).await?;
        let mut tasks: Vec<TaskView> = list(tasks).iter().map(TaskView::of).collect();
        tasks.sort_by(|a, b| (a.slot, &a.id).cmp(&(b.slot, &b.id)));
        Ok(tasks)
    }

    /// Makes an overlay network; answers its id.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub async fn create_overlay(&self, name: &str) -> Result<String, HostError> {
        let made = self.post("/networks/create", &json!({"Name": name, "Driver": "overlay"})).await?;
        Ok(made["Id"].as_str().unwrap_or_default().to_owned())
    }

    /// Makes a service; answers its id.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub async fn create_service(&self, spec: &Value) -> Result<String, HostError> {
        let made = self.post("/services/create", spec).await?;
        Ok(made["ID"].as_str().unwrap_or_default().to_owned())
    }

    /// Sets the number of tasks of a service, as `docker service scale` does: reads the spec, changes it, writes it
    /// back, and begins again when somebody else wrote in between.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub async fn scale(&self, service: &str, replicas: u64) -> Result<(), HostError> {
        let mut again = 10;
        loop {
            let mut found = self.get(&format!("/services/{service}")).await?;
            let version = found["Version"]["Index"].as_u64().unwrap_or(0);
            found["Spec"]["Mode"]["Replicated"]["Replicas"] = replicas.into();
            match self.post(&format!("/services/{service}/update?version={version}"), &found["Spec"]).await {
                Err(HostError::Refused { word: Some(ErrorWord::OutOfSequence), .. }) if again > 0 => again -= 1,
                done => return done.map(drop),
            }
        }
    }

    /// Looks again and again until `probe` finds what it looks for (`Ok`); an `Err` says what it saw instead.
    ///
    /// # Errors
    /// [`HostError::Late`] with what was seen last.
    pub async fn wait_for<T, F>(
        &self,
        what: &str,
        limit: Duration,
        mut probe: impl FnMut() -> F,
    ) -> Result<T, HostError>
    where
        F: Future<Output = Result<T, String>>,
    {
        let deadline = Instant::now() + limit;
        let mut seen = "nothing".to_owned();
        loop {
            match tokio::time::timeout_at(deadline.into(), probe()).await {
                Ok(Ok(found)) => return Ok(found),
                Ok(Err(other)) => seen = other,
                Err(_) => {}
            }
            if Instant::now() > deadline {
                return Err(HostError::Late { what: what.to_owned(), limit, seen });
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until exactly `count` tasks of a service run and are meant to, none of them on the nodes in `not_on`, and
    /// answers them.
    ///
    /// # Errors
    /// [`HostError::Late`] with the states that were seen last.
    pub async fn wait_running(
        &self,
        service: &str,
        count: usize,
        not_on: &[String],
        limit: Duration,
    ) -> Result<Vec<TaskView>, HostError> {
        self.wait_for(&format!("{count} running tasks of {service}"), limit, || async {
            let tasks = self.tasks(service, Freshness::Local).await.map_err(|e| e.to_string())?;
            let wanted: Vec<&TaskView> = tasks.iter().filter(|t| t.desired == "running").collect();
            let good = wanted.iter().filter(|t| t.serves() && !not_on.contains(&t.node)).count();
            if good == count && wanted.len() == count {
                return Ok(wanted.into_iter().cloned().collect());
            }
            Err(summary(&tasks))
        })
        .await
    }
}

fn list(value: Value) -> Vec<Value> {
    match value {
        Value::Array(items) => items,
        _ => Vec::new(),
    }
}

/// How many tasks are in which state, and what they complain of.
fn summary(tasks: &[TaskView]) -> String {
    let mut states: BTreeMap<String, usize> = BTreeMap::new();
    for task in tasks {
        let err = if task.err.is_empty() { String::new() } else { format!(" ({})", task.err) };
        *states.entry(format!("{}, wanted {}{err}", task.state, task.desired)).or_default() += 1;
    }
    match states.is_empty() {
        true => "no tasks".into(),
        false => states.iter().map(|(state, n)| format!("{n} {state}")).collect::<Vec<_>>().join("; "),
    }
}

/// The spec of a replicated service, as a client sends it.
#[derive(Debug, Clone)]
pub struct ServiceDraft {
    spec: Value,
}

impl ServiceDraft {
    /// A service of `replicas` tasks of an image. Failed tasks are started again after 100 ms.
    #[must_use]
    pub fn new(name: &str, image: &str, replicas: u64) -> ServiceDraft {
        ServiceDraft {
            spec: json!({
                "Name": name,
                "TaskTemplate": {
                    "ContainerSpec": {"Image": image, "StopGracePeriod": 5_000_000_000_u64},
                    "RestartPolicy": {"Condition": "any", "Delay": 100_000_000},
                },
                "Mode": {"Replicated": {"Replicas": replicas}},
                "EndpointSpec": {"Mode": "vip", "Ports": []},
            }),
        }
    }

    /// Attaches its tasks to a network, by name or id.
    #[must_use]
    pub fn network(mut self, network: &str) -> ServiceDraft {
        self.spec["TaskTemplate"]["Networks"] = json!([{"Target": network}]);
        self
    }

    /// Publishes a TCP port on every host.
    #[must_use]
    pub fn publish(mut self, published: u16, target: u16) -> ServiceDraft {
        let port = json!({
            "Protocol": "tcp", "TargetPort": target, "PublishedPort": published, "PublishMode": "ingress",
        });
        if let Value::Array(ports) = &mut self.spec["EndpointSpec"]["Ports"] {
            ports.push(port);
        }
        self
    }

    /// Adds a placement constraint, for example `node.hostname==host-1`.
    #[must_use]
    pub fn constraint(mut self, constraint: &str) -> ServiceDraft {
        match &mut self.spec["TaskTemplate"]["Placement"]["Constraints"] {
            Value::Array(all) => all.push(constraint.into()),
            none => *none = json!([constraint]),
        }
        self
    }

    /// The spec, to be changed further or sent.
    #[must_use]
    pub fn build(self) -> Value {
        self.spec
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_encoded() {
        assert_eq!(encode(r#"{"a":"b c"}"#), "%7B%22a%22%3A%22b%20c%22%7D");
    }

    #[test]
    fn a_draft_has_what_it_was_given() {
        let draft =
            ServiceDraft::new("web", "i", 3).publish(8080, 80).network("n").constraint("a==b").constraint("c==d");
        let spec = draft.build();
        assert_eq!(spec["EndpointSpec"]["Ports"][0]["PublishedPort"], 8080);
        assert_eq!(spec["TaskTemplate"]["Placement"]["Constraints"], json!(["a==b", "c==d"]));
        assert_eq!(spec["Mode"]["Replicated"]["Replicas"], 3);
    }
}
