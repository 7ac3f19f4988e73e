//! What was observed of a task only grows, and so does what is wanted of it; it never moves, and its id never returns.

use std::collections::BTreeSet;

use deploy::model::TaskId;
use deploy::store::Key;

use super::{Fact, Property};

/// See the file's first line.
#[derive(Default)]
pub struct StateGrows {
    forgotten: BTreeSet<TaskId>,
}

impl Property for StateGrows {
    fn name(&self) -> &'static str {
        "a task's state only grows"
    }

    fn observe(&mut self, fact: &Fact<'_>) -> Result<(), String> {
        let Some(applied) = fact.first_applied() else { return Ok(()) };
        for key in applied.keys {
            let Key::Task(id) = key else { continue };
            match (applied.before.task(id), applied.after.task(id)) {
                (Some(old), Some(new)) => {
                    if new.state() < old.state() {
                        return Err(format!("task {id} went from {:?} to {:?}", old.state(), new.state()));
                    }
                    if new.desired() < old.desired() {
                        return Err(format!("task {id} is wanted {:?} after {:?}", new.desired(), old.desired()));
                    }
                    if !old.node_id.is_none() && old.node_id != new.node_id {
                        return Err(format!("task {id} moved from {} to {}", old.node_id, new.node_id));
                    }
                }
                (Some(_), None) => self.forgotten.extend([id.clone()]),
                (None, Some(_)) if self.forgotten.contains(id) => {
                    return Err(format!("task {id} is there again after it was removed"));
                }
                (None, _) => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{changed, show, task};
    use super::*;
    use deploy::model::{DesiredState, NodeId, Task, TaskState};
    use deploy::store::Store;

    #[track_caller]
    fn check_fires(change: impl FnOnce(&mut Task)) {
        let before = changed(&Store::default(), |txn| txn.put_task(task("t", "s", "h")));
        let mut next = task("t", "s", "h");
        change(&mut next);
        let after = changed(&before, |txn| txn.put_task(next));
        assert!(show(&mut StateGrows::default(), &before, &after).is_err());
        assert!(show(&mut StateGrows::default(), &before, &before).is_ok());
    }

    #[test]
    fn a_step_back_is_found() {
        check_fires(|task| task.status.set_state(TaskState::Preparing));
        check_fires(|task| task.set_desired(DesiredState::Ready));
        check_fires(|task| task.node_id = NodeId::new("other"));
    }

    #[test]
    fn a_task_that_comes_back_is_found() {
        let without = Store::default();
        let with = changed(&without, |txn| txn.put_task(task("t", "s", "h")));
        let mut property = StateGrows::default();
        show(&mut property, &without, &with).unwrap();
        show(&mut property, &with, &without).unwrap();
        assert!(show(&mut property, &without, &with).is_err());
    }
}
