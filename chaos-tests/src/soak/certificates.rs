//! Certificates of nodes that were removed or demoted, tried at every other host: they must open nothing.

use std::io;
use std::time::Duration;

use node::ca::TlsContext;
use node::datadir::MembershipRecord;
use node::rpc::{Channels, pb};
use node::stored::{self, Kind};
use tonic::Code;

use super::site::Site;

/// Whatever is asked is answered within this time.
const CALL: Duration = Duration::from_secs(5);
/// A manager has heard of a removal that was acknowledged within this time; a busy one may take its time.
const KNOWN: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_millis(500);

/// The membership of a host, with its certificate and key; nothing where it cannot be read.
pub(super) fn read(site: &Site, host: usize) -> Option<MembershipRecord> {
    let path = site.cluster.host(host).data_dir().join("identity/membership");
    let bytes = stored::read(&path, Kind::Membership).ok()??;
    prost_decode(&bytes)
}

fn prost_decode(bytes: &[u8]) -> Option<MembershipRecord> {
    <MembershipRecord as prost::Message>::decode(bytes).ok()
}

/// What a call with such a certificate came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    /// It was carried out.
    Opened,
    /// It was refused, for who asked.
    Refused,
    /// Nobody answered.
    Silence,
}

/// Judges the answer to a call that needs a right which the caller has not.
pub(super) fn judge<T>(answer: &Result<T, tonic::Status>) -> Call {
    match answer {
        Ok(_) => Call::Opened,
        Err(status) => match status.code() {
            Code::PermissionDenied | Code::Unauthenticated => Call::Refused,
            _ => Call::Silence,
        },
    }
}

/// Tries the certificate at other hosts, standing where its owner stands. Answers how often it was refused.
///
/// # Errors
/// It opens something.
pub(super) async fn try_to_open(
    site: &Site,
    host: usize,
    others: &[usize],
    record: &MembershipRecord,
    removed: bool,
) -> Result<u64, String> {
    let Ok(client) = site.cluster.host(host).client() else { return Ok(0) };
    let mut refused = 0;
    for other in others {
        let target = (site.cluster.host(*other).node_address(), site.id(*other));
        let (record, client) = (record.clone(), client.try_clone().map_err(|e| e.to_string())?);
        let tried = tokio::task::spawn_blocking(move || client.visit(|| calls(&record, &target.0, &target.1, removed)));
        let answers = tried.await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
        for (what, call) in answers {
            match call {
                Call::Opened => {
                    let kind = if removed { "removed" } else { "demoted" };
                    return Err(format!("the certificate of a {kind} node opened {what} at host {other}"));
                }
                Call::Refused => refused += 1,
                Call::Silence => {}
            }
        }
    }
    Ok(refused)
}

/// Makes the calls, again for a while where they were carried out: a manager may not have heard yet.
fn calls(record: &MembershipRecord, addr: &str, name: &str, removed: bool) -> io::Result<Vec<(&'static str, Call)>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let deadline = tokio::time::Instant::now() + KNOWN;
        loop {
            let tls = TlsContext::new(&record.root_pem, &record.cert_pem, &record.key_pem);
            let channels = Channels::new(tls.map_err(io::Error::other)?);
            let channel = channels.to(addr, name);
            let mut answers = Vec::new();
            let mut managers = pb::managers_client::ManagersClient::new(channel.clone());
            answers.push(("reads between managers", call(managers.read_index(pb::ReadIndexRequest {})).await));
            answers.push(("reports between managers", call(managers.heard(pb::HeardRequest::default())).await));
            if removed {
                let mut ca = pb::ca_client::CaClient::new(channel);
                answers.push(("its renewal", call(ca.renew(pb::RenewRequest::default())).await));
            }
            let opened = answers.iter().any(|(_, call)| *call == Call::Opened);
            if !opened || tokio::time::Instant::now() > deadline {
                return Ok(answers);
            }
            tokio::time::sleep(AGAIN).await;
        }
    })
}

async fn call<T>(request: impl Future<Output = Result<T, tonic::Status>>) -> Call {
    match tokio::time::timeout(CALL, request).await {
        Ok(answer) => judge(&answer),
        Err(_) => Call::Silence,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Status;

    #[test]
    fn what_is_carried_out_is_open() {
        assert_eq!(judge(&Ok(())), Call::Opened);
        assert_eq!(judge::<()>(&Err(Status::permission_denied("no"))), Call::Refused);
        assert_eq!(judge::<()>(&Err(Status::unauthenticated("who?"))), Call::Refused);
        assert_eq!(judge::<()>(&Err(Status::unavailable("nobody"))), Call::Silence);
    }
}
