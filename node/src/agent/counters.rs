//! What the agent counts of its own work, for whoever watches it.

use std::collections::BTreeMap;

use deploy::model::TaskState;

use crate::metrics::{Counter, Gauge, Histogram};

/// The states that a task can be in.
const STATES: [TaskState; 14] = [
    TaskState::New,
    TaskState::Pending,
    TaskState::Assigned,
    TaskState::Accepted,
    TaskState::Preparing,
    TaskState::Ready,
    TaskState::Starting,
    TaskState::Running,
    TaskState::Complete,
    TaskState::Shutdown,
    TaskState::Failed,
    TaskState::Rejected,
    TaskState::Remove,
    TaskState::Orphaned,
];

/// Written by the tasks of the agent, each its own; read at any time.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Whether a session is open: 1 or 0.
    pub(crate) connected: Gauge,
    /// Sessions that opened; all but the first are re-attachments.
    pub(crate) sessions: Counter,
    /// Containers that started.
    pub(crate) starts: Counter,
    /// Of those, the ones that were started again on this host, without a manager.
    pub(crate) restarts: Counter,
    /// Tasks that could not be made ready, or not be started.
    pub(crate) start_failures: Counter,
    /// Making a task ready: image, container, networks.
    pub(crate) prepare: Histogram,
    /// Starting what is ready.
    pub(crate) start: Histogram,
    /// Tasks of this host, by state.
    tasks: [Gauge; STATES.len()],
}

impl Counters {
    /// Notes the states of all tasks of this host.
    pub(super) fn set_tasks(&self, states: impl Iterator<Item = TaskState>) {
        let mut counted: BTreeMap<TaskState, u64> = BTreeMap::new();
        for state in states {
            *counted.entry(state).or_default() += 1;
        }
        for (state, gauge) in STATES.iter().zip(&self.tasks) {
            gauge.set(counted.get(state).copied().unwrap_or(0));
        }
    }

    /// Tasks of this host, by state.
    pub(crate) fn tasks(&self) -> impl Iterator<Item = (TaskState, u64)> {
        STATES.into_iter().zip(self.tasks.iter().map(Gauge::get))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_without_tasks_is_counted_as_none() {
        let counters = Counters::default();
        let running = |counters: &Counters| counters.tasks().find(|(state, _)| *state == TaskState::Running);
        counters.set_tasks([TaskState::Running, TaskState::Failed, TaskState::Running].into_iter());
        assert_eq!(running(&counters), Some((TaskState::Running, 2)));
        assert_eq!(counters.tasks().map(|(_, tasks)| tasks).sum::<u64>(), 3);
        counters.set_tasks([TaskState::Failed].into_iter());
        assert_eq!(running(&counters), Some((TaskState::Running, 0)));
    }
}
