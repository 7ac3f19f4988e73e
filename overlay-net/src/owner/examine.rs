//! Answers who asks what the overlay believes and whether the kernel agrees. Changes nothing.

use std::io;
use std::time::Instant;

use super::Owner;
use crate::error::{ObjectError, OverlayError};
use crate::kernel::{FirewallObstacle, NetNs, legacy_filter, low_neighbour_limits};
use crate::observation::{Connected, Observation, Place};
use crate::overlay::AttachedInterface;
use crate::plan::picture::{Facts, Operation, Picture};

fn unread(object: String, source: io::Error) -> OverlayError {
    OverlayError::Partial(vec![ObjectError { object, source }])
}

impl Owner {
    pub(super) fn observation(&self, now: Instant) -> Result<Observation, OverlayError> {
        let share = |namespace: &NetNs| {
            namespace.try_clone().map_err(|source| OverlayError::Start { step: "share a namespace", source })
        };
        let mut tasks = Vec::new();
        for task in self.tasks.values() {
            let interface = |i: &crate::plan::attachment::Interface| AttachedInterface {
                name: i.name.clone(),
                network: i.network.clone(),
                address: i.address,
            };
            tasks.push(Connected {
                config: task.config.clone(),
                namespace: share(&task.namespace)?,
                interfaces: task.inside.interfaces.iter().map(interface).collect(),
            });
        }
        let side = self.host_side();
        Ok(Observation {
            data_path_addr: self.config.data_path_addr,
            data_path_port: self.config.data_path_port,
            underlay_mtu: self.underlay,
            desired: self.desired.clone(),
            applied_revision: *self.applied.borrow(),
            refused: self.refused.clone(),
            sealing_obstacle: self.sealing.report().obstacle,
            left_out: self.suspects.clone(),
            tasks,
            host: share(self.stage.host())?,
            ingress: side.ingress,
            way_out: side.egress,
            audit: self.audit.record(now),
        })
    }

    pub(super) fn examine(&mut self, place: &Place) -> Result<Vec<String>, OverlayError> {
        let looked = match place {
            Place::Links => self.examine_links(),
            Place::Host => self.examine_host(),
            Place::Task(id) => self.examine_task(id),
        };
        looked.map_err(|source| unread(format!("read {place:?}"), source))
    }

    fn examine_links(&mut self) -> io::Result<Vec<String>> {
        let observed = self.stage.observe()?;
        let mut lacks = Vec::new();
        let mut underlay = 0;
        if !self.desired.networks.is_empty() || self.egress.is_some() {
            let address = self.config.data_path_addr;
            match self.stage.underlay_mtu(address)? {
                Some(mtu) => underlay = mtu,
                None => return Ok(vec![format!("no interface of this host has the data path address {address}")]),
            }
        }
        if let Some(address) = self.egress {
            lacks.extend(self.stage.egress_lacks(address, underlay)?);
        }
        lacks.extend(self.seals_lack(underlay)?);
        let facts = Facts {
            data_path_addr: self.config.data_path_addr,
            data_path_port: self.config.data_path_port,
            underlay,
            seals: self.stage.has_seal(),
        };
        let wanted = Picture::wanted(&self.desired, &facts, &observed);
        // A network that the last task has left is removed by and by.
        let left = |o: &&Operation| matches!(o, Operation::DeleteTunnel(_) | Operation::DeleteSwitch(_));
        let operations = observed.operations_to(&wanted);
        lacks.extend(operations.iter().filter(|operation| !left(operation)).map(|o| format!("to do: {o}")));
        Ok(lacks)
    }

    fn examine_host(&mut self) -> io::Result<Vec<String>> {
        let wanted = self.host_tables();
        let mut lacks: Vec<String> = self.stage.host_lacks()?.iter().map(|name| format!("net/{name} is off")).collect();
        lacks.extend(low_neighbour_limits().iter().map(ToString::to_string));
        let sides = self.host_addresses();
        lacks.extend(self.stage.routes_lacking(&sides)?);
        lacks.extend(self.host_rules.differences(&wanted)?);
        Ok(lacks)
    }

    pub(super) fn examine_firewalls(&mut self) -> Result<Vec<FirewallObstacle>, OverlayError> {
        let side = self.host_side();
        let links: Vec<String> = side.ingress.into_iter().chain(side.egress).map(|(link, _)| link).collect();
        let failed = |source| unread("read the firewalls".to_owned(), source);
        let mut found = self.firewall.obstacles(&links).map_err(failed)?;
        if !links.is_empty() && legacy_filter() {
            found.push(FirewallObstacle::Unreadable);
        }
        Ok(found)
    }

    fn examine_task(&mut self, id: &str) -> io::Result<Vec<String>> {
        let Some(task) = self.tasks.get_mut(id) else { return Ok(Vec::new()) };
        let found = task.links.inside(&task.namespace)?;
        let route = task.route.after(found.default_route, task.inside.holds_route(&found));
        let mut lacks = task.inside.lacks(&found, route, self.underlay);
        let wanted = self.tables.of(&self.balance, task);
        lacks.extend(task.rules.differences(&wanted)?);
        Ok(lacks)
    }
}
