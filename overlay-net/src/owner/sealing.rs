//! What packets of encrypted networks are sealed with, kept as it should be.
//!
//! Nobody is told by the kernel when a WireGuard device changes or has met another host, so it is looked at in each round
//! of the audit; that is also what takes a rotation of keys from step to step. On a host that has no encrypted network any
//! more, keys and ports go; the namespace stays, empty.
//!
//! Whether this host could carry one is tried when it starts, and again in each round while something stands in the way that
//! may go away.

use std::io;
use std::time::SystemTime;

use tokio::sync::watch;

use super::Owner;
use crate::config::{SEAL_BYTES, Sealing, SealingKey, SealingReport};
use crate::error::ObjectError;
use crate::kernel::{Stage, wireguard_possible};
use crate::plan::picture::Picture;
use crate::plan::seal::{Seals, Step, Wish, ports};

/// What stands in the way of sealing packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Obstacle {
    /// For people.
    pub(super) reason: String,
    /// It does not go away by itself.
    pub(super) lasting: bool,
}

impl Obstacle {
    /// What was met on the way. Only a kernel that can make no device at all is one that lasts.
    fn met(error: &io::Error, data_path_port: u16) -> Obstacle {
        let lacks = |error: &io::Error| error.kind() == io::ErrorKind::Unsupported;
        let lasting = lacks(error) && wireguard_possible().is_err_and(|error| lacks(&error));
        Obstacle { lasting, ..Obstacle::of(error, data_path_port) }
    }

    fn of(error: &io::Error, data_path_port: u16) -> Obstacle {
        let [one, other] = ports(data_path_port);
        let reason = match error.kind() {
            io::ErrorKind::AddrInUse => format!("UDP port {one} or {other} of this host is in use by another program"),
            _ => error.to_string(),
        };
        Obstacle { reason, lasting: error.kind() == io::ErrorKind::Unsupported }
    }
}

/// Where it stands.
pub(super) struct SealingState {
    /// Packets can be sealed, with the key of this epoch or of the one before.
    pub(super) ready: bool,
    obstacle: Option<Obstacle>,
    /// What all steps were tried towards; what differs later was changed by others.
    settled: Option<Sealing>,
    /// For those who tell others.
    report: watch::Sender<SealingReport>,
}

impl SealingState {
    /// Finds out how it stands, and says so.
    pub(super) fn start(
        stage: &mut Stage,
        data_path_port: u16,
        report: watch::Sender<SealingReport>,
    ) -> io::Result<SealingState> {
        let seals = stage.seals()?;
        let obstacle = attempt(stage, &seals, data_path_port);
        // What is whole has served until now, whatever comes first.
        let ready = seals.devices.values().any(|device| seals.can_seal(device.epoch));
        let state = SealingState { ready, obstacle, settled: None, report };
        state.publish(seals.keys());
        Ok(state)
    }

    /// Why packets cannot be sealed.
    pub(super) fn obstacle(&self) -> Obstacle {
        let untold = || Obstacle { reason: "this host has not been told with which keys".to_owned(), lasting: false };
        self.obstacle.clone().unwrap_or_else(untold)
    }

    /// What others are told.
    pub(super) fn report(&self) -> SealingReport {
        self.report.borrow().clone()
    }

    fn publish(&self, keys: Vec<SealingKey>) {
        let now = SealingReport { obstacle: self.obstacle.as_ref().map(|obstacle| obstacle.reason.clone()), keys };
        self.report.send_if_modified(|known| {
            let changed = *known != now;
            *known = now;
            changed
        });
    }
}

/// Tries whether packets could be sealed. Whoever has devices has their ports.
fn attempt(stage: &Stage, seals: &Seals, data_path_port: u16) -> Option<Obstacle> {
    if !seals.devices.is_empty() {
        return None;
    }
    let tried = wireguard_possible().and_then(|()| stage.try_ports(ports(data_path_port)));
    tried.err().map(|error| Obstacle::of(&error, data_path_port))
}

impl Owner {
    /// Brings the devices to what is desired of them.
    pub(super) fn reconcile_seals(&mut self) -> Vec<ObjectError> {
        let fault = |source| ObjectError { object: "the keys of encrypted networks".into(), source };
        let Some(sealing) = self.desired.sealing.clone() else {
            (self.sealing.ready, self.sealing.settled) = (false, None);
            return self.unseal().err().map(fault).into_iter().collect();
        };
        let mut errors = Vec::new();
        match self.seal_with(&sealing, &mut errors) {
            Ok(ready) => {
                let first = errors.first().map(|error| Obstacle::met(&error.source, self.config.data_path_port));
                (self.sealing.ready, self.sealing.obstacle) = (ready, first.filter(|_| !ready));
            }
            // What cannot be read may be as good as before.
            Err(source) => errors.push(fault(source)),
        }
        let keys = self.sealing.report().keys;
        self.sealing.publish(keys);
        self.sealing.settled = errors.is_empty().then_some(sealing);
        errors
    }

    /// Removes the devices, once no tunnel leads to them: a network that is not desired any more stays while tasks are
    /// linked to it.
    fn unseal(&mut self) -> io::Result<()> {
        let mut seals = self.stage.seals()?;
        let in_use = |picture: &Picture| picture.switches.values().any(|s| s.tunnel.is_some_and(|t| t.sealed));
        if !seals.devices.is_empty() && !in_use(&self.stage.observe()?) {
            for slot in seals.devices.keys() {
                self.stage.seal(&Step::DeleteDevice { slot: *slot, retired: true })?;
            }
            seals.devices.clear();
        }
        self.sealing.publish(seals.keys());
        Ok(())
    }

    /// Where nothing is sealed, tries again whether it could be, if what stood in the way may have gone.
    pub(super) fn try_seals_again(&mut self) {
        let may_go = self.sealing.obstacle.as_ref().is_some_and(|obstacle| !obstacle.lasting);
        if self.desired.sealing.is_some() || !may_go {
            return;
        }
        // Devices that are still there know the obstacle better.
        if let Ok(seals) = self.stage.seals()
            && seals.devices.is_empty()
        {
            self.sealing.obstacle = attempt(&self.stage, &seals, self.config.data_path_port);
            self.sealing.publish(Vec::new());
        }
    }

    fn steps_of_seals(&mut self, sealing: &Sealing, underlay: u32) -> io::Result<Vec<Step>> {
        let wish = Wish {
            sealing,
            address: self.config.data_path_addr,
            data_path_port: self.config.data_path_port,
            mtu: underlay.saturating_sub(SEAL_BYTES),
        };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Ok(self.stage.seals()?.steps_to(&wish, now))
    }

    /// What of the devices is not as it should be, on an underlay with this MTU.
    pub(super) fn seals_lack(&mut self, underlay: u32) -> io::Result<Vec<String>> {
        let Some(sealing) = self.desired.sealing.clone() else { return Ok(Vec::new()) };
        let steps = self.steps_of_seals(&sealing, underlay)?;
        Ok(steps.iter().filter(|step| step.repairs()).map(|step| format!("to do: {step}")).collect())
    }

    fn seal_with(&mut self, sealing: &Sealing, errors: &mut Vec<ObjectError>) -> io::Result<bool> {
        let underlay = self.underlay_mtu().map_err(io::Error::other)?;
        let steps = self.steps_of_seals(sealing, underlay)?;
        if self.sealing.settled.as_ref() == Some(sealing) {
            let foreign = steps.iter().filter(|step| step.repairs()).map(ToString::to_string);
            self.audit.report_repairs("the keys of encrypted networks", foreign);
        }
        for step in &steps {
            match step {
                Step::CreateDevice { epoch, .. } => tracing::info!(epoch, "new keys for encrypted networks"),
                Step::DeleteDevice { retired: true, .. } => tracing::info!("old keys of encrypted networks are gone"),
                _ => tracing::debug!(%step, "encrypted networks"),
            }
            if let Err(source) = self.stage.seal(step) {
                errors.push(ObjectError { object: step.to_string(), source });
                // Without a device, nothing can be said to it.
                if matches!(step, Step::CreateDevice { .. }) {
                    break;
                }
            }
        }
        let seals = self.stage.seals()?;
        self.sealing.publish(seals.keys());
        Ok(seals.can_seal(sealing.epoch) || seals.can_seal(sealing.epoch.saturating_sub(1)))
    }
}
