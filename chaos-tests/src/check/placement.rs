//! A task gets a place only on a host that is Ready and Active, and that its constraints allow.

use deploy::model::{NodeAvailability, NodeState};
use deploy::scheduler::Constraint;
use deploy::store::Key;

use super::{Fact, Property};

/// See the file's first line.
pub struct Placement;

impl Property for Placement {
    fn name(&self) -> &'static str {
        "tasks are placed only where they may be"
    }

    fn observe(&mut self, fact: &Fact<'_>) -> Result<(), String> {
        let Some(applied) = fact.first_applied() else { return Ok(()) };
        for key in applied.keys {
            let Key::Task(id) = key else { continue };
            // A plain container is where its user has put it.
            let placed = applied.after.task(id).filter(|t| t.is_placed() && t.is_wanted() && !t.is_attachment());
            let Some(task) = placed else { continue };
            if applied.before.task(id).is_some_and(|old| old.is_placed()) {
                continue;
            }
            let Some(node) = applied.after.node(&task.node_id) else {
                return Err(format!("task {id} was placed on {}, which is no host", task.node_id));
            };
            // The host may have changed between the placement and what is seen of it.
            if applied.merged && applied.before.node(&node.id) != Some(node) {
                continue;
            }
            let (state, availability) = (node.status.state(), node.spec.availability());
            if state != NodeState::Ready || availability != NodeAvailability::Active {
                return Err(format!("task {id} was placed on {}, which is {state:?} and {availability:?}", node.id));
            }
            for text in &task.spec.placement.constraints {
                if !Constraint::parse(text).is_ok_and(|constraint| constraint.matches(node)) {
                    return Err(format!("task {id} was placed on {} against {text}", node.id));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{changed, node, show, task};
    use super::*;
    use deploy::model::{Node, Task};
    use deploy::store::Store;

    fn placed(change: impl FnOnce(&mut Node, &mut Task)) -> Result<(), String> {
        let (mut node, mut task) = (node("a"), task("t", "web", "a"));
        change(&mut node, &mut task);
        let before = changed(&Store::default(), |txn| txn.put_node(node));
        let after = changed(&before, |txn| txn.put_task(task));
        show(&mut Placement, &before, &after)
    }

    #[test]
    fn a_wrong_place_is_found() {
        placed(|_, _| {}).unwrap();
        assert!(placed(|node, _| node.status.set_state(NodeState::Down)).is_err());
        assert!(placed(|node, _| node.spec.set_availability(NodeAvailability::Drain)).is_err());
        assert!(placed(|_, task| task.spec.placement.constraints = vec!["node.labels.zone==a".into()]).is_err());
    }
}
