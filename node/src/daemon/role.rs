//! Follows what the cluster says of this node (its role, the managers, the gossip keys) and keeps its certificate fresh.
//!
//! One turn at a time: a turn that fails is taken again, and everything in it may have been done before. A node that
//! leaves stops following first, or it would ask back in what it has just given up.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use deploy::control::{AllocateRaftId, Op, Request};
use deploy::model::NodeId;

use super::active::{Active, gossip_seeds, internal, keyring};
use super::raft_entry::{self, CallError};
use crate::agent::AgentView;
use crate::ca::{KeyAndCsr, Role, TlsContext, Validity};
use crate::engine::EngineError;
use crate::manager::Manager;
use crate::rpc::pb;

/// Pause after a change of role that failed.
const RETRY: Duration = Duration::from_secs(1);
/// Pause after a renewal that failed; there is at least a fifth of the certificate's life left to try.
const RENEWAL_RETRY: Duration = Duration::from_secs(30);
/// The wall clock may be set, and a host may sleep: whether the certificate is due is looked at this often.
const CLOCK: Duration = Duration::from_secs(60);

impl Active {
    /// Runs until the node stops or leaves.
    pub(super) async fn supervise(self: Arc<Self>) {
        let mut views = self.agent.view();
        let mut renewal = Renewal::of(self.tls.validity());
        loop {
            let view = views.borrow_and_update().clone();
            let pause = {
                let _turn = self.turn.lock().await;
                if self.following.is_cancelled() {
                    return;
                }
                self.take_turn(&view, &mut renewal).await
            };
            tokio::select! {
                biased;
                () = self.following.cancelled() => return,
                changed = views.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Answers when to look again, should nothing change before.
    async fn take_turn(&self, view: &AgentView, renewal: &mut Renewal) -> Duration {
        if view.removed {
            return CLOCK;
        }
        let mut pause = CLOCK;
        if let Err(error) = self.follow(view).await {
            tracing::warn!(%error, "the node's role could not be changed yet");
            pause = RETRY;
        }
        renewal.follow(self.tls.validity());
        if renewal.is_due(unix_now()) {
            match self.renew_certificate().await {
                Ok(role) => tracing::info!(?role, "the certificate was renewed"),
                Err(error) => {
                    tracing::warn!(%error, "the certificate could not be renewed yet");
                    renewal.postpone(unix_now());
                }
            }
            renewal.follow(self.tls.validity());
        }
        pause.min(renewal.due_in(unix_now()))
    }

    /// From here on the node's role is left as it is; a change that is under way is given up between two of its steps.
    pub(super) async fn stop_following(&self) {
        self.following.cancel();
        drop(self.turn.lock().await);
    }

    /// What managers are asked for in a turn; given up when the node stops or leaves, which must not wait for them.
    async fn ask<T, E: Into<EngineError>>(&self, asked: impl Future<Output = Result<T, E>>) -> Result<T, EngineError> {
        self.unless_leaving(asked).await?.map_err(Into::into)
    }

    async fn unless_leaving<T>(&self, asked: impl Future<Output = T>) -> Result<T, EngineError> {
        tokio::select! {
            biased;
            () = self.following.cancelled() => Err(EngineError::Internal("the node stops".into())),
            answer = asked => Ok(answer),
        }
    }

    async fn follow(&self, view: &AgentView) -> Result<(), EngineError> {
        if !view.gossip_keys.is_empty() {
            self.update_record(|record| record.gossip_keys = view.gossip_keys.clone())?;
            self.gossip.set_keys(keyring(&view.gossip_keys)?);
        }
        for gone in &view.removed_nodes {
            self.gossip.forget(gone);
        }
        if !view.managers.is_empty() {
            self.update_record(|record| record.managers = view.managers.clone())?;
            self.gossip.set_seeds(gossip_seeds(&self.record(), &view.hosts));
        }
        let wanted = view.manager.unwrap_or_else(|| self.record().manager);
        let listed = view.managers.iter().any(|m| m.node_id == self.record().node_id);
        match (wanted, self.manager()) {
            // Its own log may be of an earlier time as a manager: a cluster that does not list it has the last word.
            (true, Some(manager)) if manager.is_voter() && (listed || view.manager.is_none()) => Ok(()),
            (true, Some(manager)) => self.confirm_manager(&manager).await,
            (true, None) => self.become_manager().await,
            // The leader takes the vote away first; then the store no longer lists this node among the managers.
            (false, Some(_)) if listed => Ok(()),
            (false, Some(manager)) => self.become_worker(&manager, view.incarnation).await,
            (false, None) => self.settle_as_worker().await,
        }
    }

    /// Worker to manager: a certificate for the role, a raft id, the log, a vote.
    async fn become_manager(&self) -> Result<(), EngineError> {
        self.hold_certificate_of(Role::Manager).await?;
        let mut record = self.record();
        let damage = self.damage();
        // Under its raft id it may have voted, and acknowledged what is damaged now: that id must never take part again.
        // Only a quorum of the others gives out another one, and such a quorum has all that was acknowledged.
        let (earlier, damaged) = (record.raft_id, damage.is_some());
        if earlier == 0 || damaged {
            if !damaged {
                // What an earlier time as a manager left behind belongs to another raft id.
                self.engine.data().remove_raft().map_err(|e| internal("the old log could not be removed")(&e))?;
            }
            let node_id = NodeId::new(record.node_id.clone());
            let op = Op::AllocateRaftId(AllocateRaftId { node_id, addr: record.advertise_addr.clone() });
            let reply = self.ask(raft_entry::execute(&self.channels, &record.managers, Request::from(op))).await?;
            self.update_record(|r| {
                r.manager = true;
                r.raft_id = reply.number;
            })?;
            record = self.record();
            if damaged {
                tracing::warn!(before = earlier, now = record.raft_id, "this node begins anew as a manager");
                self.set_damaged_aside(earlier)?;
            }
        }
        self.start_manager(record.raft_id, record.raft_opened == record.raft_id).await?;
        // Before anybody counts on it.
        self.update_record(|r| r.raft_opened = r.raft_id)?;
        self.restart_server()?;
        self.become_voter().await?.map_err(EngineError::from)
    }

    /// Asks for the vote that this manager should have. One that was demoted and promoted again while it was away has
    /// the raft id of before, which no longer counts: it begins anew.
    async fn confirm_manager(&self, manager: &Manager) -> Result<(), EngineError> {
        match self.become_voter().await? {
            Err(error) if error.contradicted() => {
                tracing::warn!(raft.id = self.record().raft_id, %error, "this node begins anew as a manager");
                let (own, now) = (manager.incarnation(), self.agent.view().borrow().incarnation);
                self.retire(manager).await?;
                if own.is_some_and(|own| own != now) {
                    self.keep_log(now)?;
                }
                self.record_worker()?;
                self.become_manager().await
            }
            other => other.map_err(EngineError::from),
        }
    }

    async fn become_voter(&self) -> Result<Result<(), CallError>, EngineError> {
        let record = self.record();
        let request = pb::JoinRaftRequest {
            node_id: record.node_id.clone(),
            raft_id: record.raft_id,
            addr: record.advertise_addr.clone(),
        };
        let joined = self.unless_leaving(raft_entry::join(&self.channels, &record.managers, request)).await?;
        if joined.is_ok() {
            tracing::info!(raft.id = record.raft_id, "this node is a manager");
        }
        Ok(joined)
    }

    /// Manager to worker, after the leader took its vote away, or because the cluster was recovered without this node:
    /// then its log may be all that is left of what the recovery has lost, and is kept.
    async fn become_worker(&self, manager: &Manager, incarnation: u64) -> Result<(), EngineError> {
        let own = manager.incarnation();
        self.retire(manager).await?;
        if own.is_some_and(|own| own != incarnation) {
            self.keep_log(incarnation)?;
        }
        self.record_worker()?;
        self.settle_as_worker().await?;
        tracing::info!("this node is a worker");
        Ok(())
    }

    /// Stops the manager. Nothing on disk changes.
    async fn retire(&self, manager: &Manager) -> Result<(), EngineError> {
        self.manager.store(None);
        let restarted = self.restart_server();
        manager.shutdown().await;
        restarted
    }

    /// No raft id from here on, also after a crash: a log that is still there is removed, not opened.
    pub(super) fn record_worker(&self) -> Result<(), EngineError> {
        self.update_record(|record| {
            record.manager = false;
            record.raft_id = 0;
        })
    }

    /// What a worker must not have: the record, the log and the certificate of a manager. A change of role that was cut
    /// is finished here.
    async fn settle_as_worker(&self) -> Result<(), EngineError> {
        self.forget_damage();
        self.record_worker()?;
        if self.engine.data().raft().exists() {
            self.engine.data().remove_raft().map_err(|e| internal("the log could not be removed")(&e))?;
        }
        self.hold_certificate_of(Role::Worker).await
    }

    /// Renews unless the certificate says that role already. A manager that lags may issue one for the role of before,
    /// which is an error: the next turn asks again.
    async fn hold_certificate_of(&self, role: Role) -> Result<(), EngineError> {
        if self.tls.identity().role == role || self.renew_certificate().await? == role {
            return Ok(());
        }
        Err(EngineError::Internal(format!(
            "the manager that was asked does not know yet that this is a {}",
            role.unit()
        )))
    }

    /// A new certificate for the role that the cluster has for this node; answers that role.
    async fn renew_certificate(&self) -> Result<Role, EngineError> {
        let own = KeyAndCsr::generate().map_err(|e| internal("no key could be made")(&e))?;
        let before = self.record();
        let reply = self.ask(raft_entry::renew(&self.channels, &before.managers, own.csr_pem)).await?;
        // Looked at before it is kept: a record that cannot be used would keep the node from starting.
        let fresh = TlsContext::new(&before.root_pem, &reply.cert_pem, &own.key_pem)
            .map_err(|e| internal("the new certificate")(&e))?
            .identity();
        if fresh.node_id != before.node_id || fresh.cluster_id != before.cluster_id {
            return Err(EngineError::Internal(format!("the new certificate is for node {:?}", fresh.node_id)));
        }
        self.update_record(|record| {
            record.cert_pem.clone_from(&reply.cert_pem);
            record.key_pem.clone_from(&own.key_pem);
        })?;
        self.tls
            .replace(&before.root_pem, &reply.cert_pem, &own.key_pem)
            .map_err(|e| internal("the new certificate")(&e))?;
        self.channels.reset();
        Ok(fresh.role)
    }
}

fn unix_now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// When the certificate is renewed: drawn once a certificate, so that a cluster's renewals are spread.
struct Renewal {
    validity: Validity,
    /// Unix seconds.
    due: i64,
}

impl Renewal {
    fn of(validity: Validity) -> Self {
        Self { validity, due: validity.renewal(rand::random_range(0.5..0.8)) }
    }

    /// Draws anew if there is another certificate.
    fn follow(&mut self, validity: Validity) {
        if validity != self.validity {
            *self = Self::of(validity);
        }
    }

    fn is_due(&self, now: i64) -> bool {
        now >= self.due
    }

    fn postpone(&mut self, now: i64) {
        self.due = now.saturating_add(i64::try_from(RENEWAL_RETRY.as_secs()).unwrap_or_default());
    }

    fn due_in(&self, now: i64) -> Duration {
        Duration::from_secs(u64::try_from(self.due.saturating_sub(now)).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_due_in_time_put_off_when_that_fails_and_drawn_anew_when_it_is_another() {
        let first = Validity { not_before: 0, not_after: 3600 + 1000 };
        let mut renewal = Renewal::of(first);
        assert!((3600 + 500..3600 + 800).contains(&renewal.due), "{}", renewal.due);
        assert!(!renewal.is_due(4099) && renewal.is_due(4400));
        assert_eq!(renewal.due_in(renewal.due - 7), Duration::from_secs(7));
        assert_eq!(renewal.due_in(9999), Duration::ZERO);
        renewal.postpone(4400);
        renewal.follow(first);
        assert!(!renewal.is_due(4429) && renewal.is_due(4430));
        renewal.follow(Validity { not_before: 4400, not_after: 4400 + 3600 + 1000 });
        assert!(renewal.due >= 4400 + 3600 + 500);
    }
}
