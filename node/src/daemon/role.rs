//! Follows what the cluster says of this node (its role, the managers, the gossip keys) and keeps its certificate fresh.
//!
//! Whom to trust and how to gossip is followed at once, by a task of its own. Role and certificate need the managers,
//! which may take minutes: one turn at a time: a turn that fails is taken again, and everything in it may have been done before. A node that
//! leaves stops following first, or it would ask back in what it has just given up.

use std::collections::BTreeSet;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use deploy::control::{AllocateRaftId, Op, Request};
use deploy::model::NodeId;

use super::active::{Active, gossip_seeds, internal, keyring};
use super::raft_entry::{self, CallError};
use crate::agent::AgentView;
use crate::ca::{KeyAndCsr, Role, TlsContext, TlsError, Validity};
use crate::clock;
use crate::datadir::MembershipRecord;
use crate::engine::EngineError;
use crate::manager::Manager;
use crate::rpc::pb;

/// Pause after a change of role that failed.
const RETRY: Duration = Duration::from_secs(1);
/// Pause after a renewal that failed; there is at least a fifth of the certificate's life left to try.
const RENEWAL_RETRY: Duration = Duration::from_secs(30);
/// The same for one that has run out.
const LATE_RETRY: Duration = Duration::from_secs(2);
/// A manager whose certificate has run out asks the others for so long before it helps itself.
const SELF_HELP: Duration = Duration::from_secs(3);
/// The wall clock may be set, and a host may sleep: whether the certificate is due is looked at this often.
const CLOCK: Duration = Duration::from_secs(5);

/// Proof that nobody else changes the credentials.
type Held<'a> = MutexGuard<'a, ()>;

impl Active {
    /// Follows the cluster's word on trust and gossip until the node stops or leaves, whatever a turn waits for.
    pub(super) async fn keep_trust(self: Arc<Self>) {
        let mut views = self.agent.view();
        loop {
            let view = views.borrow_and_update().clone();
            let pause = if self.take_over(&view) { CLOCK } else { RETRY };
            tokio::select! {
                biased;
                () = self.following.cancelled() => return,
                changed = views.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Takes over what needs no manager; may be done again at any time. Answers whether all of it could be.
    fn take_over(&self, view: &AgentView) -> bool {
        let held = self.credentials.lock().unwrap_or_else(PoisonError::into_inner);
        // A record must not be written after the one of a node that has left was removed.
        if view.removed || self.following.is_cancelled() {
            return true;
        }
        let trust = self.follow_trust(&held, view);
        let gossip = self.follow_gossip(view);
        for error in [&trust, &gossip].into_iter().filter_map(|done| done.as_ref().err()) {
            tracing::warn!(%error, "trusted roots, managers or gossip keys could not be changed yet");
        }
        trust.is_ok() && gossip.is_ok()
    }

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
        // Not only for `keep_trust` to do: whom this turn asks, and what for, depends on it.
        if !self.take_over(view) {
            pause = RETRY;
        }
        // Before the role: without a certificate that is taken, nothing else can be done.
        renewal.follow(self.tls.validity());
        if self.is_uncertified(view) {
            renewal.hurry(clock::unix_seconds());
        }
        if renewal.is_due(clock::unix_seconds()) {
            match self.renew_certificate().await {
                Ok(role) => tracing::info!(?role, "the certificate was renewed"),
                Err(error) => {
                    tracing::warn!(%error, "the certificate could not be renewed yet");
                    renewal.postpone(clock::unix_seconds());
                }
            }
            renewal.follow(self.tls.validity());
        }
        if let Err(error) = self.follow(view).await {
            tracing::warn!(%error, "the node's role could not be changed yet");
            pause = RETRY;
        }
        pause.min(renewal.due_in(clock::unix_seconds()))
    }

    /// Whether this node needs another certificate, however long its own still holds: managers do not take it, or it is
    /// of a root that is being replaced.
    fn is_uncertified(&self, view: &AgentView) -> bool {
        let other_root = !view.root_digest.is_empty() && self.tls.issuer().as_ref() != Some(&view.root_digest);
        other_root || view.uncertified.is_some() || self.tls.validity().not_after <= clock::unix_seconds()
    }

    /// Takes over whom the cluster trusts, and hangs up on those that it does not trust any more.
    fn follow_trust(&self, held: &Held<'_>, view: &AgentView) -> Result<(), EngineError> {
        let removed: BTreeSet<String> = view.removed_nodes.iter().cloned().collect();
        self.tls.revoke(removed.clone());
        // Two that speak in one name would refute each other for ever.
        self.gossip.silence(view.refused.is_some());
        let managers: BTreeSet<String> = view.managers.iter().map(|manager| manager.node_id.clone()).collect();
        let mut gone = removed;
        {
            let mut before = self.managers_before.lock().unwrap_or_else(PoisonError::into_inner);
            // Who is no manager any more may go on as a worker, with connections that are judged anew.
            gone.extend(before.difference(&managers).cloned());
            *before = managers;
        }
        let closed = self.connections.close(&gone);
        if closed > 0 {
            tracing::info!(closed, "connections of nodes that were removed or demoted are closed");
        }
        let record = self.record();
        if view.trust_pem.is_empty() || view.trust_pem == record.root_pem {
            return Ok(());
        }
        self.use_credentials(held, |record| record.root_pem.clone_from(&view.trust_pem))?;
        tracing::info!("the trusted roots have changed");
        Ok(())
    }

    /// Takes over the keys of the gossip and where the managers are, and forgets who was removed.
    fn follow_gossip(&self, view: &AgentView) -> Result<(), EngineError> {
        for gone in &view.removed_nodes {
            self.gossip.forget(gone);
        }
        if !view.gossip_keys.is_empty() {
            self.update_record(|record| record.gossip_keys = view.gossip_keys.clone())?;
            self.gossip.set_keys(keyring(&view.gossip_keys)?);
        }
        if !view.managers.is_empty() {
            self.update_record(|record| record.managers = view.managers.clone())?;
            self.gossip.set_seeds(gossip_seeds(&self.record(), &view.hosts));
        }
        Ok(())
    }

    /// Changes roots, certificate or key: looked at first, then on disk, then in use. A record that cannot be used would
    /// keep the node from starting.
    fn use_credentials(&self, _held: &Held<'_>, change: impl Fn(&mut MembershipRecord)) -> Result<(), EngineError> {
        let mut changed = self.record();
        change(&mut changed);
        let unusable = |e: TlsError| internal("the new credentials")(&e);
        TlsContext::new(&changed.root_pem, &changed.cert_pem, &changed.key_pem).map_err(unusable)?;
        self.update_record(change)?;
        self.tls.replace(&changed.root_pem, &changed.cert_pem, &changed.key_pem).map_err(unusable)?;
        // What is open goes on as it is; what is opened from here on uses them.
        self.channels.reset();
        Ok(())
    }

    /// From here on the node's role is left as it is; a change that is under way is given up between two of its steps.
    pub(super) async fn stop_following(&self) {
        self.following.cancel();
        drop(self.turn.lock().await);
        drop(self.credentials.lock().unwrap_or_else(PoisonError::into_inner));
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
        let mut own = KeyAndCsr::generate().map_err(|e| internal("no key could be made")(&e))?;
        let before = self.record();
        let expired = self.tls.validity().not_after <= clock::unix_seconds();
        let alone = self.manager().filter(|_| expired);
        let limit = alone.is_some().then_some(SELF_HELP);
        let asked = raft_entry::renew(&self.channels, &before.managers, own.csr_pem.clone(), limit);
        let reply = match (self.unless_leaving(asked).await?, alone) {
            (Ok(reply), _) => reply,
            // Nobody may be able to answer: all may be in the same state. A refusal is an answer.
            (Err(error), Some(manager)) if error.undecided() => {
                // The key that it has is the one that the others know, should they be there after all.
                own = KeyAndCsr::again(&before.key_pem).map_err(|e| internal("the key cannot be used")(&e))?;
                certify_itself(&manager, &own.csr_pem).ok_or(error)?
            }
            (Err(error), _) => return Err(error.into()),
        };
        let trust = if reply.trust_pem.is_empty() { before.root_pem.clone() } else { reply.trust_pem };
        let fresh = TlsContext::new(&trust, &reply.cert_pem, &own.key_pem)
            .map_err(|e| internal("the new certificate")(&e))?
            .identity();
        if fresh.node_id != before.node_id || fresh.cluster_id != before.cluster_id {
            return Err(EngineError::Internal(format!("the new certificate is for node {:?}", fresh.node_id)));
        }
        let held = self.credentials.lock().unwrap_or_else(PoisonError::into_inner);
        self.use_credentials(&held, |record| {
            record.root_pem.clone_from(&trust);
            record.cert_pem.clone_from(&reply.cert_pem);
            record.key_pem.clone_from(&own.key_pem);
        })?;
        Ok(fresh.role)
    }
}

/// What a manager can do by itself: it holds the root.
fn certify_itself(manager: &Manager, csr_pem: &str) -> Option<pb::RenewReply> {
    match manager.certify_itself(csr_pem)? {
        Ok((issued, trust_pem)) => {
            tracing::warn!("no other manager could renew this manager's certificate; it has issued its own");
            Some(pb::RenewReply { cert_pem: issued.chain_pem, manager: true, trust_pem })
        }
        Err(error) => {
            tracing::warn!(error = crate::chain(&error), "this manager could not issue its own certificate");
            None
        }
    }
}

/// When the certificate is renewed: drawn once a certificate, so that a cluster's renewals are spread. In Unix seconds.
struct Renewal {
    validity: Validity,
    due: i64,
    /// No sooner than this: the last try has failed.
    not_before: i64,
}

impl Renewal {
    fn of(validity: Validity) -> Self {
        Self { validity, due: validity.renewal(rand::random_range(0.5..0.8)), not_before: i64::MIN }
    }

    /// Draws anew if there is another certificate.
    fn follow(&mut self, validity: Validity) {
        if validity != self.validity {
            *self = Self::of(validity);
        }
    }

    /// The certificate is good for nothing: it is due, whatever was drawn.
    fn hurry(&mut self, now: i64) {
        self.due = self.due.min(now);
    }

    fn when(&self) -> i64 {
        self.due.max(self.not_before)
    }

    fn is_due(&self, now: i64) -> bool {
        now >= self.when()
    }

    fn postpone(&mut self, now: i64) {
        // While it holds there is at least a fifth of its life left to try. Without it the node can do nothing.
        let pause = if now < self.validity.not_after { RENEWAL_RETRY } else { LATE_RETRY };
        self.not_before = now.saturating_add(i64::try_from(pause.as_secs()).unwrap_or_default());
    }

    fn due_in(&self, now: i64) -> Duration {
        Duration::from_secs(u64::try_from(self.when().saturating_sub(now)).unwrap_or_default())
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
        // Run out, it is tried more often.
        renewal.postpone(5000);
        assert!(!renewal.is_due(5001) && renewal.is_due(5002));
        renewal.follow(Validity { not_before: 4400, not_after: 4400 + 3600 + 1000 });
        assert!(renewal.due >= 4400 + 3600 + 500);
    }

    #[test]
    fn one_that_is_not_taken_is_replaced_at_once_but_not_faster_than_it_fails() {
        let mut renewal = Renewal::of(Validity { not_before: 0, not_after: 3600 + 1000 });
        renewal.hurry(3700);
        assert!(renewal.is_due(3700));
        renewal.postpone(3700);
        renewal.hurry(3701);
        assert!(!renewal.is_due(3729) && renewal.is_due(3730));
    }
}
