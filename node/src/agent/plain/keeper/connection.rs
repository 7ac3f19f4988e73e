//! How a container's owner connects it: its place on a network, its links and its resolver, and how it gives them back.
//!
//! Whether it is to run, and so when this happens, is the owner's to say. A place on a network of the cluster is asked
//! from managers; addresses on networks of this host are the host's own.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use deploy::agent::Place;
use deploy::model::NetworkMode;
use overlay_net::{Attached, DnsSockets, EndpointConfig, Overlay, OverlayError};
use tokio::time::Instant;

use super::super::places::PlaceError;
use super::super::record::{NetworkOf, Record};
use super::super::shared::Shared;
use super::super::{PlainError, needs_overlay};
use super::Keeper;
use crate::agent::executor::DNS_FDS;
use crate::agent::network;
use crate::rpc::pb;

impl Keeper {
    /// Gives a container that is to run its network: the links, and the sockets of its resolver.
    pub(super) async fn connect(&mut self, netns: OwnedFd) -> Result<(), PlainError> {
        let shared = Arc::clone(&self.shared);
        match self.record.spec.network_mode() {
            NetworkMode::Host => return Ok(()),
            NetworkMode::None => return network::loopback_alone(netns).await.map_err(PlainError::Network),
            NetworkMode::Cluster => {}
        }
        let without = || PlainError::Network("this host has no networks".to_owned());
        let overlay = shared.config.overlay.as_ref().ok_or_else(without)?;
        shared.take_ports(&mut self.record)?;
        let endpoint = network::endpoint_config(&self.record.task(), &hostname(&self.record));
        let attached = attach(overlay, netns, &endpoint).await?;
        let DnsSockets { udp, tcp } = attached.sockets;
        shared.config.runtime.park_fds(&self.record.id, DNS_FDS, vec![udp, tcp]).await?;
        shared.show(&self.record.id, |view| {
            (view.address, view.connected) = (attached.gateway_address, true);
        });
        shared.published(overlay, &self.record).await
    }

    /// Gets its place on the network of its spec, if that names one.
    pub(super) async fn take_place(&mut self) -> Result<(), PlainError> {
        let shared = Arc::clone(&self.shared);
        let Some(wish) = self.record.spec.cluster_networks().next().cloned() else { return Ok(()) };
        // Those of this host first, as with Docker; unless it is known whose it is.
        if shared.join_local(&mut self.record)? {
            return Ok(());
        }
        if self.record.asked_address(&wish.target).is_some() {
            return Err(PlainError::AddressElsewhere(wish.target));
        }
        let network = wish.target.clone();
        let failed = |reason| PlainError::Place { network: network.clone(), reason };
        let without = || failed(PlaceError::Unavailable("this host has no managers".to_owned()));
        let places = shared.config.places.as_ref().ok_or_else(without)?;
        shared.use_place(&self.record.id, Place::Asked);
        if let Some(kept) = places.given(&self.record.place) {
            shared.use_place(&self.record.id, Place::Used(self.record.place.clone()));
            self.record.attachments = kept;
            self.record.set_network_of(NetworkOf::Cluster);
            return Ok(());
        }
        self.record.lose_place();
        let request = pb::AttachRequest {
            container: self.record.id.clone(),
            name: self.record.name.clone(),
            network: wish.target,
            aliases: wish.aliases,
            start: rand::random(),
            ..pb::AttachRequest::default()
        };
        let id = places.ask(request).await.map_err(&failed)?;
        let told = places.told(&id).await;
        if told.is_err() {
            // Now, as managers can be reached: the next attempt asks for another one, and this host, which knows of none,
            // would never give this one back. Should it fail, that happens when it is told of it after all.
            let _ = places.give_back(&id).await;
        }
        self.record.attachments = told.map_err(failed)?;
        shared.use_place(&self.record.id, Place::Used(id.clone()));
        self.record.place = id;
        self.record.set_network_of(NetworkOf::Cluster);
        Ok(())
    }

    /// Takes its network down. Its place on that stays its own.
    pub(super) async fn disconnect(&mut self) {
        let key = self.record.key();
        self.record.chosen_ports.clear();
        // On networks of this host it has another address when it is started again.
        if self.record.place.is_none() {
            self.record.attachments.clear();
        }
        if !needs_overlay(&self.record) {
            return;
        }
        // Before its address is given back: nobody may have it twice.
        if let Some(overlay) = &self.shared.config.overlay
            && let Err(error) = detach(overlay, key.as_str()).await
        {
            tracing::warn!(
                container.id = self.record.id,
                error = crate::chain(&error),
                "a container's network could not be taken down"
            );
        }
        self.shared.release(&self.record);
    }

    /// Gives its place back: it is not to run, or not soon. It is not connected.
    pub(super) fn give_place_back(&mut self) {
        if self.record.place.is_none() {
            return;
        }
        self.record.lose_place();
        let record = self.record.clone();
        self.shared.show(&record.id, |view| view.record = record.clone());
        self.shared.use_place(&record.id, Place::Unused);
    }
}

fn hostname(record: &Record) -> String {
    match record.spec.container.hostname.as_str() {
        "" => record.id[..12.min(record.id.len())].to_owned(),
        given => given.to_owned(),
    }
}

/// Connects it, once its network is there.
async fn attach(overlay: &Overlay, netns: OwnedFd, endpoint: &EndpointConfig) -> Result<Attached, PlainError> {
    /// A network that it needs is set up within this time.
    const NETWORK: Duration = Duration::from_secs(10);
    /// How often it is tried.
    const EVERY: Duration = Duration::from_millis(20);
    let failed = |error: &dyn std::error::Error| PlainError::Network(crate::chain(error));
    let deadline = Instant::now() + NETWORK;
    loop {
        let again = netns.try_clone().map_err(|error| failed(&error))?;
        match overlay.attach(again, endpoint.clone(), None).await {
            Ok(attached) => return Ok(attached),
            Err(OverlayError::UnknownNetwork { .. }) if Instant::now() < deadline => tokio::time::sleep(EVERY).await,
            Err(error) => return Err(failed(&error)),
        }
    }
}

/// Disconnects it; what only failed at this moment is tried again.
async fn detach(overlay: &Overlay, key: &str) -> Result<(), OverlayError> {
    /// How often it is tried.
    const TRIES: usize = 3;
    /// Pause in between. Its user may wait for its end.
    const PAUSE: Duration = Duration::from_millis(200);
    let mut detached = overlay.detach(key).await;
    for _ in 1..TRIES {
        if !detached.as_ref().is_err_and(OverlayError::retry_helps) {
            break;
        }
        tokio::time::sleep(PAUSE).await;
        detached = overlay.detach(key).await;
    }
    detached
}

/// Takes over the network of a container that runs already: an earlier daemon has connected it.
pub(super) async fn reattach(shared: &Shared, record: &Record) -> Result<(), String> {
    let Some(overlay) = shared.config.overlay.as_ref().filter(|_| needs_overlay(record)) else { return Ok(()) };
    if shared.has_lost_network(record) {
        // To connect it anew would need that network. What it has still leads out, and to its ports.
        tracing::error!(
            container.id = record.id,
            container.name = record.name,
            "what was remembered of a container's network is lost: its links are left as they are"
        );
        shared.show(&record.id, |view| view.connected = true);
        return Ok(());
    }
    let runtime = &shared.config.runtime;
    let netns = runtime.netns(&record.id).await.map_err(|error| crate::chain(&error))?;
    let fds = runtime.fetch_fds(&record.id, DNS_FDS).await.map_err(|error| crate::chain(&error))?;
    // Never parked: the daemon was killed in between. New ones are opened.
    let sockets = <[OwnedFd; 2]>::try_from(fds).ok().map(|[udp, tcp]| DnsSockets { udp, tcp });
    let endpoint = network::endpoint_config(&record.task(), &hostname(record));
    let attached = overlay.attach(netns, endpoint, sockets).await.map_err(|error| crate::chain(&error))?;
    shared.show(&record.id, |view| {
        (view.address, view.connected) = (attached.gateway_address, true);
    });
    Ok(())
}
