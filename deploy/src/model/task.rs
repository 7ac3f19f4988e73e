//! A task: one attempt to run one replica. It never moves and never starts twice.

use super::{
    Meta, NetworkAttachment, NodeId, PortConfig, PortProtocol, PublishMode, ServiceId, TaskId, TaskSpec, Timestamp,
};

/// One attempt to run one replica.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Task {
    /// Its id; never used twice.
    #[prost(message, required, tag = "1")]
    pub id: TaskId,
    /// Version and times.
    #[prost(message, required, tag = "2")]
    pub meta: Meta,
    /// What it runs, as the service had it when the task was made.
    #[prost(message, required, tag = "3")]
    pub spec: TaskSpec,
    /// The service's `spec_version` at that time.
    #[prost(uint64, tag = "4")]
    pub spec_version: u64,
    /// The service that it belongs to.
    #[prost(message, required, tag = "5")]
    pub service_id: ServiceId,
    /// The service's name at that time; part of the container's name.
    #[prost(string, tag = "6")]
    pub service_name: String,
    /// Place among the replicas, from 1; 0 for a global service, whose slot is the node.
    #[prost(uint64, tag = "7")]
    pub slot: u64,
    /// Where it runs; none until it is placed.
    #[prost(message, required, tag = "8")]
    pub node_id: NodeId,
    /// What was observed of it.
    #[prost(message, required, tag = "9")]
    pub status: TaskStatus,
    /// What the leader wants of it.
    #[prost(enumeration = "DesiredState", tag = "10")]
    pub desired: i32,
    /// Addresses on the networks of the task.
    #[prost(message, repeated, tag = "11")]
    pub attachments: Vec<NetworkAttachment>,
    /// Ports of the service when the task was made; those in host mode hold on this host.
    #[prost(message, repeated, tag = "12")]
    pub ports: Vec<PortConfig>,
    /// Not started before this time (restart delay). While it waits, `desired` is Ready.
    #[prost(message, required, tag = "13")]
    pub not_before: Timestamp,
    /// When earlier tasks of this slot and spec version were replaced, newest last; what restart limits count.
    #[prost(message, repeated, tag = "14")]
    pub restarts: Vec<Timestamp>,
    /// When its endpoints were taken out of load balancing before a stop; never if they were not.
    #[prost(message, required, tag = "15")]
    pub draining_since: Timestamp,
    /// Iteration of the job that it belongs to.
    #[prost(uint64, tag = "16")]
    pub job_iteration: u64,
    /// Place in the succession of tasks of its slot, from 1; the task with the highest one decides what happens next.
    #[prost(uint64, tag = "17")]
    pub ordinal: u64,
    /// It is not even placed before `not_before`: its predecessor could not be made ready, and making this one ready
    /// ahead of time would only fail sooner than the restart delay allows.
    #[prost(bool, tag = "18")]
    pub placed_late: bool,
    /// Numbers that were chosen for the host-mode ports of `ports` whose numbers the user left open, in their order;
    /// none before the task is placed.
    #[prost(uint32, repeated, tag = "50")]
    pub chosen_ports: Vec<u32>,
    /// The plain container whose place on a network this is; empty for what runs as a task. Such a place belongs to no
    /// service, and its host starts nothing for it.
    #[prost(string, tag = "70")]
    pub container: String,
}

impl Task {
    /// Whether the leader still wants it (running, about to run, or running to its end).
    pub fn is_wanted(&self) -> bool {
        self.desired() < DesiredState::Shutdown
    }

    /// Whether names and virtual addresses may lead to it.
    pub fn is_serving(&self) -> bool {
        self.state() == TaskState::Running
            && !self.status.unhealthy
            && self.is_wanted()
            && self.draining_since.is_never()
    }

    /// Takes back the leader's wish for it: `desired` is Shutdown or Remove. Nobody is to be led there from now on; one
    /// that others are led to at this moment has to be let go by them before it stops, and that is noted.
    pub fn stop(&mut self, desired: DesiredState, now: Timestamp) {
        if self.is_serving() && self.can_be_reached() {
            self.draining_since = now;
        }
        self.set_desired(self.desired().max(desired));
    }

    /// Whether it is to stop, has not ended, and served until it was told.
    pub fn is_draining(&self) -> bool {
        !self.draining_since.is_never() && !self.is_wanted() && !self.has_ended()
    }

    /// Whether there is a way to it: a network, or a port of its host.
    pub fn can_be_reached(&self) -> bool {
        !self.attachments.is_empty() || self.ports.iter().any(|port| port.mode() == PublishMode::Host)
    }

    /// What was observed last.
    pub fn state(&self) -> TaskState {
        self.status.state()
    }

    /// Whether it was observed to have ended, or never to begin.
    pub fn has_ended(&self) -> bool {
        self.state().is_terminal()
    }

    /// Whether it has a place.
    pub fn is_placed(&self) -> bool {
        !self.node_id.is_none() && self.state() >= TaskState::Assigned
    }

    /// Whether the task is on the network that carries published ports: the service had such a port when it was made.
    pub fn publishes_ingress(&self) -> bool {
        self.ports.iter().any(PortConfig::is_ingress)
    }

    /// Whether it still lacks an address on one of its networks, or the number of a port, as far as it tells itself. The
    /// allocator has work then, and no host should be told of the task before it is done.
    pub fn lacks_addresses(&self) -> bool {
        let networks = self.spec.cluster_networks().count() + usize::from(self.publishes_ingress());
        // A task that its host knows already, from a release that chose no numbers, is not taken away from it again.
        let lacks_ports = self.state() <= TaskState::Assigned && self.chosen_ports.len() < self.open_ports().count();
        let is_short = self.attachments.len() < networks || lacks_ports;
        is_short && self.is_placed() && self.is_wanted() && self.holds_addresses()
    }

    /// Its ports on the host itself whose numbers the user left open.
    pub fn open_ports(&self) -> impl Iterator<Item = &PortConfig> {
        self.ports.iter().filter(|port| !port.is_ingress() && port.published == 0)
    }

    /// The numbers that were chosen for its open ports.
    pub fn chosen(&self) -> impl Iterator<Item = (PortProtocol, u32)> {
        self.open_ports().zip(&self.chosen_ports).map(|(port, number)| (port.protocol(), *number))
    }

    /// Its ports on the host itself, with their numbers. One whose number is still to be chosen is left out.
    pub fn host_ports(&self) -> impl Iterator<Item = PortConfig> {
        let mut chosen = self.chosen_ports.iter();
        self.ports.iter().filter(|port| !port.is_ingress()).filter_map(move |port| {
            let published = if port.published == 0 { *chosen.next()? } else { port.published };
            Some(PortConfig { published, ..port.clone() })
        })
    }

    /// Whether the addresses in `attachments` are still the task's own. They are until the task was *seen* to end: a
    /// task on a host that is down may still use them.
    pub fn holds_addresses(&self) -> bool {
        !self.status.state().is_terminal()
    }

    /// Whether it is only the place of a plain container on a network.
    pub fn is_attachment(&self) -> bool {
        !self.container.is_empty()
    }

    /// The service that it is a task of.
    pub fn service(&self) -> Option<&ServiceId> {
        (!self.is_attachment()).then_some(&self.service_id)
    }

    /// Name of the task's container: `SERVICE.SLOT.ID`, or `SERVICE.NODE.ID` for a global service. A plain container's is
    /// its own.
    pub fn name(&self) -> String {
        if self.is_attachment() {
            self.service_name.clone()
        } else if self.slot > 0 {
            format!("{}.{}.{}", self.service_name, self.slot, self.id)
        } else {
            format!("{}.{}.{}", self.service_name, self.node_id, self.id)
        }
    }
}

/// What was observed of a task; only grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum TaskState {
    /// Made.
    New = 0,
    /// Waits for a place.
    Pending = 64,
    /// Has a host.
    Assigned = 192,
    /// The host's agent has it.
    Accepted = 256,
    /// Image, mounts and network are made ready.
    Preparing = 320,
    /// Ready to start.
    Ready = 384,
    /// Starting, or running and not yet healthy.
    Starting = 448,
    /// Running (and healthy, where there is a health check).
    Running = 512,
    /// Ended with exit code 0.
    Complete = 576,
    /// Ended because the leader wanted it to.
    Shutdown = 640,
    /// Ended with an error after it started.
    Failed = 704,
    /// Could not be made ready.
    Rejected = 768,
    /// About to be forgotten.
    Remove = 800,
    /// Its host was away for too long.
    Orphaned = 832,
}

impl TaskState {
    /// Whether the task has ended, one way or another.
    pub fn is_terminal(self) -> bool {
        self > TaskState::Running
    }
}

/// What the leader may want of a task; only grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum DesiredState {
    /// Made ready, but not started yet.
    Ready = 0,
    /// Running.
    Running = 1,
    /// Run until it ends by itself (jobs).
    Completed = 2,
    /// Stopped.
    Shutdown = 3,
    /// Stopped and forgotten.
    Remove = 4,
}

/// What was observed of a task.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TaskStatus {
    /// State.
    #[prost(enumeration = "TaskState", tag = "1")]
    pub state: i32,
    /// When it got there.
    #[prost(message, required, tag = "2")]
    pub at: Timestamp,
    /// What it is doing, for people ("started", "preparing").
    #[prost(string, tag = "3")]
    pub message: String,
    /// What went wrong, in Docker's words; empty if nothing did.
    #[prost(string, tag = "4")]
    pub err: String,
    /// Its container, once there is one.
    #[prost(message, optional, tag = "5")]
    pub container: Option<ContainerStatus>,
    /// It runs, and nothing is to be led to it: its health check failed, or it was started again by its host and has
    /// not passed yet.
    #[prost(bool, tag = "6")]
    pub unhealthy: bool,
}

/// The container of a task.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ContainerStatus {
    /// Id, 64 hexadecimal characters.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Process id of its first process on the host; 0 when it does not run.
    #[prost(uint32, tag = "2")]
    pub pid: u32,
    /// Exit code, once it ended.
    #[prost(int32, optional, tag = "3")]
    pub exit_code: Option<i32>,
    /// Whether the kernel killed it for memory.
    #[prost(bool, tag = "4")]
    pub oom_killed: bool,
    /// How often the agent restarted it on its own while no manager could be reached.
    #[prost(uint32, tag = "5")]
    pub local_restarts: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1000);

    fn serving() -> Task {
        let mut task = Task::default();
        task.set_desired(DesiredState::Running);
        task.status.set_state(TaskState::Running);
        task.attachments.push(NetworkAttachment::default());
        task
    }

    #[track_caller]
    fn check(change: impl FnOnce(&mut Task), drains: bool) {
        let mut task = serving();
        change(&mut task);
        task.stop(DesiredState::Shutdown, NOW);
        assert_eq!(task.is_draining(), drains, "{task:?}");
        assert!(!task.is_serving() && !task.is_wanted());
        let since = task.draining_since;
        // Whoever is forgotten as well does not begin anew, and is not wanted again.
        task.stop(DesiredState::Remove, NOW.plus(std::time::Duration::from_secs(1)));
        task.stop(DesiredState::Shutdown, NOW);
        assert_eq!((task.desired(), task.draining_since), (DesiredState::Remove, since));
    }

    #[test]
    fn only_who_is_led_to_drains() {
        check(|_| {}, true);
        check(|task| task.status.unhealthy = true, false);
        check(|task| task.status.set_state(TaskState::Starting), false);
        check(|task| task.status.set_state(TaskState::Failed), false);
        check(|task| task.attachments.clear(), false);
        let host_port = || {
            let mut port = PortConfig::default();
            port.set_mode(PublishMode::Host);
            port
        };
        check(
            |task| {
                task.attachments.clear();
                task.ports.push(host_port());
            },
            true,
        );
    }
}
