//! The other hosts over port 2377: managers say who has a blob, and whoever has it gives it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{StreamExt, TryStreamExt};
use rand::seq::IndexedRandom;
use runtime::image::Digest;
use sha2::Digest as _;
use tokio::sync::watch;
use tonic::Code;

use super::fetch::{Claim, Peer, Pieces, Refusal, Source};
use crate::agent::AgentView;
use crate::datadir::ManagerRecord;
use crate::rpc::{Channels, pb};

/// Who has not answered a question within this time is left out.
const ASK: Duration = Duration::from_secs(2);
/// A transfer begins within this time.
const OPEN: Duration = Duration::from_secs(10);
/// Hosts that are asked themselves when no manager answers.
const GUESSES: usize = 8;
/// Managers that are asked, one after the other, who may ask a registry.
const ARBITERS: usize = 3;

/// The hosts of the cluster, as the agent knows them.
pub(crate) struct ClusterPeers {
    node_id: String,
    channels: Channels,
    view: watch::Receiver<AgentView>,
}

impl ClusterPeers {
    pub(crate) fn new(node_id: String, channels: Channels, view: watch::Receiver<AgentView>) -> Self {
        Self { node_id, channels, view }
    }

    fn managers(&self) -> Vec<ManagerRecord> {
        self.view.borrow().managers.clone()
    }

    /// What the managers say, or nothing if none answers.
    async fn ask_managers(&self, blob: Digest) -> Option<BTreeSet<Peer>> {
        let ask = |manager: ManagerRecord| {
            let channel = self.channels.to(&manager.addr, &manager.node_id);
            let request = pb::FindRequest { digests: vec![blob.as_bytes().to_vec()] };
            async move {
                let mut client = pb::whereabouts_client::WhereaboutsClient::new(channel);
                tokio::time::timeout(ASK, client.find(request)).await
            }
        };
        let mut asked: FuturesUnordered<_> = self.managers().into_iter().map(ask).collect();
        let mut found = None;
        while let Some(answer) = asked.next().await {
            let Ok(Ok(answer)) = answer else { continue };
            let found = found.get_or_insert_with(BTreeSet::new);
            let holders = answer.into_inner().found.into_iter().flat_map(|found| found.holders);
            found.extend(holders.map(|holder| Peer { node_id: holder.node_id, addr: holder.addr }));
        }
        found
    }

    /// Asks some hosts themselves.
    async fn guess(&self, blob: Digest) -> BTreeSet<Peer> {
        let hosts: Vec<Peer> = {
            let view = self.view.borrow();
            let others = view.hosts.iter().filter(|(id, _)| **id != self.node_id);
            others.map(|(id, addr)| Peer { node_id: id.clone(), addr: addr.clone() }).collect()
        };
        let ask = |peer: Peer| {
            let channel = self.channels.once(&peer.addr, &peer.node_id);
            let request = pb::HasRequest { digests: vec![blob.as_bytes().to_vec()] };
            async move {
                let mut client = pb::content_client::ContentClient::new(channel);
                let answer = tokio::time::timeout(ASK, client.has(request)).await.ok()?.ok()?;
                (!answer.into_inner().digests.is_empty()).then_some(peer)
            }
        };
        let some: Vec<Peer> = hosts.sample(&mut rand::rng(), GUESSES).cloned().collect();
        some.into_iter().map(ask).collect::<FuturesUnordered<_>>().filter_map(std::future::ready).collect().await
    }

    /// What the first of a blob's arbiters says that answers: where one is away, all hosts agree on the next.
    async fn ask_arbiter(&self, blob: Digest, release: bool) -> Option<pb::ClaimReply> {
        for arbiter in arbiters(self.managers(), blob) {
            let channel = self.channels.to(&arbiter.addr, &arbiter.node_id);
            let mut client = pb::whereabouts_client::WhereaboutsClient::new(channel);
            let request = pb::ClaimRequest { digest: blob.as_bytes().to_vec(), release };
            if let Ok(Ok(answer)) = tokio::time::timeout(ASK, client.claim(request)).await {
                return Some(answer.into_inner());
            }
        }
        None
    }
}

/// The managers that say who asks the registry for a blob, the first one first: the same for everyone who knows the same
/// managers, and others for other blobs (rendezvous hashing).
fn arbiters(mut managers: Vec<ManagerRecord>, blob: Digest) -> Vec<ManagerRecord> {
    let weight = |manager: &ManagerRecord| {
        sha2::Sha256::new_with_prefix(blob.as_bytes()).chain_update(&manager.node_id).finalize().to_vec()
    };
    managers.sort_by_cached_key(|manager| std::cmp::Reverse(weight(manager)));
    managers.truncate(ARBITERS);
    managers
}

impl Source for ClusterPeers {
    async fn find(&self, blob: Digest) -> Vec<Peer> {
        let found = match self.ask_managers(blob).await {
            Some(found) => found,
            None => self.guess(blob).await,
        };
        // One host that two managers know is one host.
        let found: BTreeMap<String, Peer> = found.into_iter().map(|peer| (peer.node_id.clone(), peer)).collect();
        found.into_values().filter(|peer| peer.node_id != self.node_id).collect()
    }

    async fn open(&self, peer: &Peer, blob: Digest, offset: u64) -> Result<Pieces, Refusal> {
        let mut client = pb::content_client::ContentClient::new(self.channels.once(&peer.addr, &peer.node_id));
        let request = pb::FetchRequest { digest: blob.as_bytes().to_vec(), offset };
        let answer = tokio::time::timeout(OPEN, client.fetch(request)).await;
        let answer = answer.map_err(|_| Refusal::Failed("it did not answer within 10 s".to_owned()))?;
        let pieces = answer.map_err(refusal)?.into_inner();
        Ok(pieces.map_ok(|piece| piece.data).map_err(refusal).boxed())
    }

    async fn claim(&self, blob: Digest) -> Claim {
        match self.ask_arbiter(blob, false).await {
            Some(reply) if reply.granted => {
                // Whatever it says, not all the time and not never.
                Claim::Granted(Duration::from_millis(reply.again_ms.clamp(500, 60_000)))
            }
            Some(_) => Claim::Taken,
            None => Claim::Unknown,
        }
    }

    async fn release(&self, blob: Digest) {
        // Not heard, it runs out.
        self.ask_arbiter(blob, true).await;
    }
}

fn refusal(status: tonic::Status) -> Refusal {
    match status.code() {
        Code::ResourceExhausted => Refusal::Busy,
        Code::NotFound => Refusal::Missing,
        _ => Refusal::Failed(status.message().to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_agree_on_the_arbiters_of_a_blob_and_one_that_goes_takes_only_its_own() {
        let managers = |names: &[&str]| -> Vec<ManagerRecord> {
            names.iter().map(|id| ManagerRecord { node_id: (*id).into(), addr: String::new() }).collect()
        };
        let names = |of: Vec<ManagerRecord>| -> Vec<String> { of.into_iter().map(|m| m.node_id).collect() };
        let mut first = BTreeSet::new();
        for n in 0..100 {
            let blob = Digest::from_bytes([n; 32]);
            let all = names(arbiters(managers(&["a", "b", "c", "d", "e"]), blob));
            assert_eq!(all.len(), ARBITERS);
            assert_eq!(all, names(arbiters(managers(&["e", "c", "a", "d", "b"]), blob)));
            let left: Vec<&str> = ["a", "b", "c", "d", "e"].into_iter().filter(|id| *id != all[0]).collect();
            assert_eq!(names(arbiters(managers(&left), blob))[..2], all[1..]);
            first.insert(all[0].clone());
        }
        assert_eq!(first.len(), 5, "the work is shared");
    }
}
