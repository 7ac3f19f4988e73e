//! Tells nodes which hosts have image content, and managers what an image's name stands for.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use deploy::model::NodeId;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use runtime::image::{Digest, Reference};
use tonic::{Request, Response, Status};

use super::Manager;
use super::holdings::CLAIM;
use crate::images::{MAX_ASKED, digest};
use crate::rpc::{MAX_MESSAGE, caller, pb};

/// Another manager that has not answered within this time is left out.
const ASK: Duration = Duration::from_secs(2);

pub(super) fn service(manager: Manager) -> pb::whereabouts_server::WhereaboutsServer<Service> {
    pb::whereabouts_server::WhereaboutsServer::new(Service { manager }).max_decoding_message_size(MAX_MESSAGE)
}

pub(super) struct Service {
    manager: Manager,
}

#[tonic::async_trait]
impl pb::whereabouts_server::Whereabouts for Service {
    async fn find(&self, request: Request<pb::FindRequest>) -> Result<Response<pb::FindReply>, Status> {
        let asking = self.manager.authorize_node(&caller(&request)?)?;
        let request = request.into_inner();
        if request.digests.len() > MAX_ASKED {
            return Err(Status::invalid_argument(format!("more than {MAX_ASKED} digests")));
        }
        let published = self.manager.inner.published.borrow().clone();
        let holder = |node: NodeId| {
            let addr = published.store.node(&node)?.description.control_addr.clone();
            Some(pb::Holder { node_id: node.to_string(), addr })
        };
        let mut found = Vec::new();
        for bytes in &request.digests {
            let blob = digest(bytes)?;
            let holders = self.manager.inner.holdings.holders(&blob, &asking, rand::random::<u32>() as usize);
            let holders: Vec<pb::Holder> = holders.into_iter().filter_map(holder).collect();
            if !holders.is_empty() {
                found.push(pb::BlobHolders { digest: bytes.clone(), holders });
            }
        }
        Ok(Response::new(pb::FindReply { found }))
    }

    async fn claim(&self, request: Request<pb::ClaimRequest>) -> Result<Response<pb::ClaimReply>, Status> {
        let asking = self.manager.authorize_node(&caller(&request)?)?;
        let request = request.into_inner();
        let blob = digest(&request.digest)?;
        let holdings = &self.manager.inner.holdings;
        let granted = match request.release {
            true => {
                holdings.release(&blob, &asking);
                false
            }
            false => holdings.claim(blob, &asking, Instant::now()),
        };
        let again_ms = u64::try_from(CLAIM.as_millis() / 3).unwrap_or(u64::MAX);
        Ok(Response::new(pb::ClaimReply { granted, again_ms }))
    }

    async fn resolve(&self, request: Request<pb::ResolveRequest>) -> Result<Response<pb::ResolveReply>, Status> {
        self.manager.authorize_manager(&caller(&request)?)?;
        let meanings = self.manager.inner.holdings.meanings(&request.into_inner().name);
        let meanings =
            meanings.into_iter().map(|(manifest, hosts)| pb::Meaning { manifest: manifest.as_bytes().to_vec(), hosts });
        Ok(Response::new(pb::ResolveReply { meanings: meanings.collect() }))
    }
}

impl Manager {
    /// The manifest that an image's name stands for on most of the hosts that have the name, as far as the managers
    /// that answer know; among as many, the smallest digest, so that each manager says the same.
    pub async fn resolve_image(&self, name: &Reference) -> Option<Digest> {
        let name = name.canonical();
        let mut meanings = self.inner.holdings.meanings(&name);
        let others: BTreeSet<(String, String)> = {
            let published = self.inner.published.borrow();
            let managers = published.store.nodes().filter(|node| node.id != self.inner.node_id);
            managers.filter_map(|node| Some((node.manager.as_ref()?.addr.clone(), node.id.to_string()))).collect()
        };
        let mut asked: FuturesUnordered<_> = others
            .into_iter()
            .map(|(addr, id)| {
                let mut client = pb::whereabouts_client::WhereaboutsClient::new(self.inner.channels.to(&addr, &id));
                let name = name.clone();
                async move { tokio::time::timeout(ASK, client.resolve(pb::ResolveRequest { name })).await }
            })
            .collect();
        while let Some(answer) = asked.next().await {
            let Ok(Ok(answer)) = answer else { continue };
            for meaning in answer.into_inner().meanings {
                if let Ok(manifest) = digest(&meaning.manifest) {
                    let hosts = meanings.entry(manifest).or_insert(0);
                    *hosts = hosts.saturating_add(meaning.hosts);
                }
            }
        }
        most_common(&meanings)
    }
}

fn most_common(meanings: &BTreeMap<Digest, u32>) -> Option<Digest> {
    meanings.iter().max_by_key(|(digest, hosts)| (**hosts, std::cmp::Reverse(**digest))).map(|(digest, _)| *digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stands_for_what_most_hosts_have() {
        let of = |pairs: &[(u8, u32)]| pairs.iter().map(|(n, hosts)| (Digest::from_bytes([*n; 32]), *hosts)).collect();
        let check = |pairs: &[(u8, u32)], expected: Option<u8>| {
            assert_eq!(most_common(&of(pairs)), expected.map(|n| Digest::from_bytes([n; 32])), "{pairs:?}");
        };
        check(&[], None);
        check(&[(1, 1), (2, 3), (3, 2)], Some(2));
        check(&[(1, 2), (2, 2)], Some(1));
    }
}
