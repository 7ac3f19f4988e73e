//! Answers without an entry of their own, above all refusals, rest on a store that may be old: a leader that was cut off
//! does not know that there is another. They wait here until a majority has confirmed that this manager led after they
//! were decided. What has an entry is confirmed by its commit and never comes here.
//!
//! One confirmation, a round of heartbeats, serves all that wait when it begins; turns and entries wait for none.

use deploy::control::{ControlError, Reply};
use tokio::sync::{mpsc, oneshot};

use super::leader::{NotDone, Outcome};

/// Answers that wait to be confirmed; beyond that the caller has to ask again.
const WAITING: usize = 1024;

/// What a request came to on the speculative store, and who wants to know.
pub(super) struct Answer {
    pub(super) decided: Result<Reply, ControlError>,
    pub(super) to: oneshot::Sender<Outcome>,
}

impl Answer {
    /// Sends what was decided, with the index that it rests on, or why it does not hold. The caller may have gone.
    pub(super) fn send(self, index: Result<u64, NotDone>) {
        let _ = self.to.send(match (index, self.decided) {
            (Ok(index), Ok(reply)) => Ok((reply, index)),
            (Ok(_), Err(refused)) => Err(NotDone::Refused(refused)),
            (Err(not_done), _) => Err(not_done),
        });
    }
}

struct Unsure {
    term: u64,
    index: u64,
    answer: Answer,
}

/// Hands answers over to be confirmed.
pub(super) struct Confirmations(mpsc::Sender<Unsure>);

impl Confirmations {
    /// Sends an answer that was decided in `term` on a store of `index`, once it is sure. Does not wait.
    pub(super) fn confirm(&self, term: u64, index: u64, answer: Answer) {
        if let Err(error) = self.0.try_send(Unsure { term, index, answer }) {
            error.into_inner().answer.send(Err(NotDone::NotLeader));
        }
    }
}

/// The handle, and the task, which ends with the handle. `leads_in` has a majority confirm that this manager leads at
/// that moment, and says in which term.
pub(super) fn new<F>(leads_in: impl Fn() -> F + Send) -> (Confirmations, impl Future<Output = ()> + Send)
where
    F: Future<Output = Option<u64>> + Send,
{
    let (sender, mut receiver) = mpsc::channel::<Unsure>(WAITING);
    let task = async move {
        let mut waiting = Vec::new();
        while receiver.recv_many(&mut waiting, WAITING).await > 0 {
            let term = leads_in().await;
            for unsure in waiting.drain(..) {
                // In a later term there was another leader in between, for all that is known.
                let sure = term == Some(unsure.term);
                unsure.answer.send(if sure { Ok(unsure.index) } else { Err(NotDone::NotLeader) });
            }
        }
    };
    (Confirmations(sender), task)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Confirmations that are given by hand.
    struct ByHand {
        confirmations: Confirmations,
        give: mpsc::Sender<Option<u64>>,
        asked: Arc<Mutex<usize>>,
    }

    fn by_hand() -> ByHand {
        let (give, verdicts) = mpsc::channel(8);
        let (verdicts, asked) = (Arc::new(tokio::sync::Mutex::new(verdicts)), Arc::<Mutex<usize>>::default());
        let count = asked.clone();
        let (confirmations, task) = new(move || {
            *count.lock().unwrap() += 1;
            let verdicts = verdicts.clone();
            async move { verdicts.lock().await.recv().await.flatten() }
        });
        tokio::spawn(task);
        ByHand { confirmations, give, asked }
    }

    fn refusal() -> (Answer, oneshot::Receiver<Outcome>) {
        let (to, outcome) = oneshot::channel();
        let refused = ControlError::new(deploy::control::ErrorKind::NotFound, "no such service");
        (Answer { decided: Err(refused), to }, outcome)
    }

    #[tokio::test]
    async fn an_answer_without_an_entry_waits_until_this_manager_is_sure_to_lead() {
        let ByHand { confirmations, give, .. } = by_hand();
        let cases = [(Some(7), true), (None, false), (Some(8), false)];
        for (verdict, sure) in cases {
            let (answer, mut outcome) = refusal();
            confirmations.confirm(7, 1, answer);
            tokio::task::yield_now().await;
            assert!(outcome.try_recv().is_err(), "answered before it was confirmed");
            give.send(verdict).await.unwrap();
            match outcome.await.unwrap() {
                Err(NotDone::Refused(_)) => assert!(sure, "{verdict:?}"),
                Err(NotDone::NotLeader) => assert!(!sure, "{verdict:?}"),
                other => panic!("{verdict:?}: {other:?}"),
            }
        }
    }

    #[tokio::test]
    async fn what_waits_together_is_confirmed_together_and_only_by_what_was_asked_afterwards() {
        let ByHand { confirmations, give, asked } = by_hand();
        let (first, outcome) = refusal();
        confirmations.confirm(7, 1, first);
        while *asked.lock().unwrap() == 0 {
            tokio::task::yield_now().await;
        }
        let mut later = Vec::new();
        for _ in 0..5 {
            let (answer, outcome) = refusal();
            confirmations.confirm(7, 1, answer);
            later.push(outcome);
        }
        give.send(Some(7)).await.unwrap();
        assert!(matches!(outcome.await.unwrap(), Err(NotDone::Refused(_))));
        while *asked.lock().unwrap() == 1 {
            tokio::task::yield_now().await;
        }
        assert!(
            later.iter_mut().all(|outcome| outcome.try_recv().is_err()),
            "an older confirmation was taken for theirs"
        );
        give.send(Some(7)).await.unwrap();
        for outcome in later {
            assert!(matches!(outcome.await.unwrap(), Err(NotDone::Refused(_))));
        }
        assert_eq!(*asked.lock().unwrap(), 2);
    }
}
