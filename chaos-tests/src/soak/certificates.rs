//! Certificates of nodes that were removed or demoted, tried at every other host: they must open nothing.
//!
//! Only a refusal of who asked counts, and an answer that says anything else is a violation. A host that does not answer
//! at all, because another fault is under way there, counts as not tried; if none refuses, the check itself has failed: one
//! that nobody answers would hold whatever the cluster does.

use std::io;
use std::path::Path;
use std::time::Duration;

use node::ca::{KeyAndCsr, TlsContext};
use node::datadir::MembershipRecord;
use node::rpc::{Channels, pb};
use node::stored::{self, Kind};
use node::vault::Vault;
use tonic::Code;

use super::site::Site;

/// Whatever is asked is answered within this time.
const CALL: Duration = Duration::from_secs(5);
/// Every host has heard of a removal or demotion that was acknowledged within this time; a busy one may take its time.
const KNOWN: Duration = Duration::from_secs(20);
const AGAIN: Duration = Duration::from_millis(500);

/// The membership of a host, with its certificate and key.
///
/// # Errors
/// There is none, or it cannot be read: then nothing could be tried with it.
pub(super) fn read(site: &Site, host: usize) -> Result<MembershipRecord, String> {
    read_in(&site.cluster.host(host).data_dir())
}

/// The file is sealed with the keys beside it.
fn read_in(data: &Path) -> Result<MembershipRecord, String> {
    let (path, keys) = (data.join("identity/membership"), data.join("identity/keys"));
    // Opening a vault that is not there would make one.
    if !keys.exists() {
        return Err(format!("there is no {}", keys.display()));
    }
    let vault = Vault::open(&keys).map_err(|e| node::chain(&e))?;
    let bytes = stored::read_sealed(&path, Kind::Membership, &vault).map_err(|e| node::chain(&e))?;
    let bytes = bytes.ok_or_else(|| format!("there is no {}", path.display()))?;
    prost::Message::decode(bytes.as_slice()).map_err(|e| format!("{}: {e}", path.display()))
}

/// What a call with such a certificate came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Call {
    /// It was refused, for who asked.
    Refused,
    /// It was carried out, or got as far as another reason not to.
    NotRefused(String),
    /// Nobody answered.
    Unreached,
}

/// Judges the answer to a call that needs a right which the caller has not.
pub(super) fn judge<T>(answer: &Result<T, tonic::Status>) -> Call {
    match answer {
        Ok(_) => Call::NotRefused("it was carried out".into()),
        Err(status) => match status.code() {
            Code::PermissionDenied | Code::Unauthenticated => Call::Refused,
            // What was not said by the other side has the failure of the connection as its cause.
            Code::Unavailable if std::error::Error::source(status).is_some() => Call::Unreached,
            code => Call::NotRefused(format!("{code:?}: {}", status.message())),
        },
    }
}

/// Tries the certificate at other hosts, standing where its owner stands: managers get the calls of managers and, from
/// a removed node, a request for another certificate; every host gets one for its logs. Answers how often it was
/// refused.
///
/// # Errors
/// A call was not refused, or none could be made.
pub(super) async fn try_to_open(
    site: &Site,
    host: usize,
    others: &[usize],
    record: &MembershipRecord,
    removed: bool,
) -> Result<u64, String> {
    let kind = if removed { "removed" } else { "demoted" };
    let client = site.cluster.host(host).client().map_err(|e| format!("nothing could be tried: {e}"))?;
    let mut refused = 0;
    for other in others {
        // Whose role is being changed is not among the others.
        let manager = *other < site.shape.managers;
        let tried = Tried { addr: site.cluster.host(*other).node_address(), name: site.id(*other), manager, removed };
        let (record, client) = (record.clone(), client.try_clone().map_err(|e| e.to_string())?);
        let answers = tokio::task::spawn_blocking(move || client.visit(|| calls(&record, &tried))).await;
        let answers = answers.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
        for (what, call) in answers {
            match call {
                Call::Refused => refused += 1,
                Call::Unreached => {}
                Call::NotRefused(answer) => {
                    return Err(format!(
                        "the certificate of a {kind} node was not refused {what} at host {other}: {answer}"
                    ));
                }
            }
        }
    }
    if refused == 0 {
        return Err(format!("the certificate of a {kind} node could not be tried at any host"));
    }
    Ok(refused)
}

/// A host that a certificate is tried at.
struct Tried {
    addr: String,
    name: String,
    /// Whether it serves what managers serve.
    manager: bool,
    /// Whether the certificate's owner was removed: one that was demoted may well ask for another certificate.
    removed: bool,
}

/// Makes the calls, again for a while where they were not refused: a host may not have heard yet.
fn calls(record: &MembershipRecord, at: &Tried) -> io::Result<Vec<(&'static str, Call)>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let csr_pem = KeyAndCsr::generate().map_err(io::Error::other)?.csr_pem;
    runtime.block_on(async {
        let deadline = tokio::time::Instant::now() + KNOWN;
        loop {
            let tls = TlsContext::new(&record.root_pem, &record.cert_pem, &record.key_pem);
            let channels = Channels::new(tls.map_err(io::Error::other)?);
            let channel = channels.to(&at.addr, &at.name);
            let mut answers = Vec::new();
            let mut logs = pb::logs_client::LogsClient::new(channel.clone());
            answers.push(("logs", call(logs.read(pb::LogsRequest::default())).await));
            if at.manager {
                let mut managers = pb::managers_client::ManagersClient::new(channel.clone());
                answers.push(("reads between managers", call(managers.read_index(pb::ReadIndexRequest {})).await));
                answers.push(("reports between managers", call(managers.heard(pb::HeardRequest::default())).await));
            }
            if at.manager && at.removed {
                let mut ca = pb::ca_client::CaClient::new(channel);
                let request = pb::RenewRequest { csr_pem: csr_pem.clone() };
                answers.push(("its renewal", call(ca.renew(request)).await));
            }
            let refused = answers.iter().all(|(_, call)| *call == Call::Refused);
            if refused || tokio::time::Instant::now() > deadline {
                return Ok(answers);
            }
            tokio::time::sleep(AGAIN).await;
        }
    })
}

async fn call<T>(request: impl Future<Output = Result<T, tonic::Status>>) -> Call {
    match tokio::time::timeout(CALL, request).await {
        Ok(answer) => judge(&answer),
        Err(_) => Call::Unreached,
    }
}

#[cfg(test)]
mod tests {
    use node::datadir::DataDir;
    use tonic::Status;

    use super::*;

    #[test]
    fn only_a_refusal_of_who_asked_is_one() {
        for status in [Status::permission_denied("no"), Status::unauthenticated("who?")] {
            assert_eq!(judge::<()>(&Err(status)), Call::Refused);
        }
        assert_ne!(judge(&Ok(())), Call::Refused);
        // A request that is no good, a follower that cannot answer, a host that serves no such thing.
        for status in [Status::invalid_argument("csr"), Status::unavailable("nobody"), Status::unimplemented("what?")] {
            assert!(matches!(judge::<()>(&Err(status)), Call::NotRefused(_)));
        }
    }

    #[tokio::test]
    async fn a_host_that_is_not_there_has_not_been_tried() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        drop(listener);
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{addr}")).unwrap();
        let mut logs = pb::logs_client::LogsClient::new(endpoint.connect_lazy());
        assert_eq!(call(logs.read(pb::LogsRequest::default())).await, Call::Unreached);
    }

    #[test]
    fn a_membership_is_read_as_a_node_stores_it() {
        let dir = tempfile::tempdir().unwrap();
        read_in(dir.path()).unwrap_err();
        assert!(!dir.path().join("identity/keys").exists(), "reading has made keys");
        let data = DataDir::open(dir.path()).unwrap();
        read_in(dir.path()).unwrap_err();
        let record = MembershipRecord { node_id: "node".into(), key_pem: "key".into(), ..MembershipRecord::default() };
        data.save_membership(&record).unwrap();
        assert_eq!(read_in(dir.path()).unwrap(), record);
    }
}
