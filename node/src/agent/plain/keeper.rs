//! The owner of one plain container: carries out what its user says and what its restart policy says. `connection` has
//! how it is connected.

mod connection;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use deploy::model::NetworkMode;
use runtime::{ContainerState, ExitStatus, RuntimeError, Signal, Status};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::connection::reattach;
use super::PlainError;
use super::policy::{self, End, Next};
use super::record::{Record, Restart};
use super::shared::Shared;
use super::streams::Listener;
use crate::agent::{IMAGE_LABEL, PLAIN_LABEL, health};

/// Pause before what failed on a container is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Who is started again within this time keeps its place on its network, and who has to wait for longer does not: for so
/// long others may remember its name (`TTL_S` of the resolver), and no longer are they led to one that does not run.
const KEEP: Duration = Duration::from_secs(5);

type Reply<T> = oneshot::Sender<Result<T, PlainError>>;

/// What is said to a container's owner. Whoever has gone meanwhile does not hear the answer.
pub(super) enum Command {
    /// Start it; whether it did not run yet.
    Start(Reply<bool>),
    /// Stop it, by this signal or its own, and by force after that time; whether it ran, or was about to.
    Stop(Option<Signal>, Duration, Reply<bool>),
    /// Stop it, as above, and start it.
    Restart(Option<Signal>, Duration, Reply<()>),
    /// Its user ends it by a signal, which is the caller's to send.
    WillEnd(Reply<()>),
    /// Somebody wants its streams: those of its next run, if it has ended.
    Attach(Listener, Reply<()>),
    /// Give it this name, which nobody else has.
    Rename(String, Reply<()>),
    /// Start it again by this policy from now on, and at most so often in a row.
    Update(Restart, u32, Reply<()>),
    /// Remove it.
    Remove {
        /// Also while it runs.
        force: bool,
        /// With the volumes that nobody gave a name.
        volumes: bool,
        /// The answer.
        reply: Reply<()>,
    },
}

/// Where a container stands, for its owner.
enum Turn {
    /// It does not run, and nothing is to happen.
    Rests,
    /// It runs. `adopted`: an earlier daemon has started it.
    Runs { adopted: bool },
    /// It is started at that time.
    Waits(Instant),
    /// It is to be removed, and cannot be yet: what is left, and when that is tried again.
    Goes { left: String, at: Instant },
    /// Nothing is left of it.
    Gone,
}

/// Clients that wait for the next run of one container.
const MAX_LISTENERS: usize = 64;

pub(super) struct Keeper {
    shared: Arc<Shared>,
    record: Record,
    /// Before the last restart; zero if its user started it.
    pause: Duration,
    /// Its last start failed, and not by its fault: that was told.
    retries: bool,
    /// They wait for its next run.
    listeners: Vec<Listener>,
}

impl Keeper {
    pub(super) fn new(shared: Arc<Shared>, record: Record) -> Self {
        Self { shared, record, pause: Duration::ZERO, retries: false, listeners: Vec::new() }
    }

    /// Takes over what an earlier daemon has left.
    pub(super) async fn begin(mut self, found: Option<ContainerState>, inbox: mpsc::Receiver<Command>) {
        let turn = self.adopt(found).await;
        self.run(turn, inbox).await;
    }

    /// Looks after a new one.
    pub(super) async fn rest(self, inbox: mpsc::Receiver<Command>) {
        self.run(Turn::Rests, inbox).await;
    }

    async fn run(mut self, mut turn: Turn, mut inbox: mpsc::Receiver<Command>) {
        loop {
            let waits = matches!(turn, Turn::Waits(_));
            self.shared.show(&self.record.id, |view| view.waits = waits);
            turn = match turn {
                Turn::Gone => return,
                Turn::Runs { adopted } => self.runs(adopted, &mut inbox).await,
                Turn::Rests => match inbox.recv().await {
                    Some(command) => self.take(command, Turn::Rests).await,
                    None => return,
                },
                Turn::Waits(until) => {
                    tokio::select! {
                        biased;
                        command = inbox.recv() => match command {
                            Some(command) => self.take(command, Turn::Waits(until)).await,
                            None => return,
                        },
                        () = tokio::time::sleep_until(until) => self.again().await,
                    }
                }
                Turn::Goes { left, at } => {
                    tokio::select! {
                        biased;
                        command = inbox.recv() => match command {
                            Some(command) => self.leave(command, left, at).await,
                            None => return,
                        },
                        () = tokio::time::sleep_until(at) => self.remove_at_last().await,
                    }
                }
            };
        }
    }

    async fn adopt(&mut self, found: Option<ContainerState>) -> Turn {
        let Some(found) = found else {
            tracing::warn!(
                container.id = self.record.id,
                container.name = self.record.name,
                "a container is not there any more"
            );
            self.forget().await;
            return Turn::Gone;
        };
        let end = match &found.status {
            Status::Running => {
                self.record.wanted = true;
                return Turn::Runs { adopted: true };
            }
            // Its daemon ended between saying so and starting it.
            Status::Created if self.record.wanted => return Turn::Waits(Instant::now()),
            Status::Exited(exit) if self.record.wanted => Some(end_of(&found, exit)),
            Status::Created | Status::Exited(_) => None,
        };
        let has_run = matches!(found.status, Status::Exited(_));
        self.follow(policy::at_start(&self.record, end, has_run)).await
    }

    /// A command to one that does not run.
    async fn take(&mut self, command: Command, turn: Turn) -> Turn {
        match command {
            Command::Start(reply) => {
                let started = self.start_anew().await;
                self.settle(started, matches!(turn, Turn::Waits(_)), |started| drop(reply.send(started.map(|()| true))))
                    .await
            }
            Command::Restart(_, _, reply) => {
                let started = self.start_anew().await;
                if started.is_ok() {
                    self.tell("restart");
                }
                self.settle(started, matches!(turn, Turn::Waits(_)), |started| drop(reply.send(started))).await
            }
            // A start that is due counts as running. What does not run stays as it is: it may never have been started.
            Command::Stop(_, _, reply) => {
                let waited = matches!(turn, Turn::Waits(_));
                let next = if waited { self.give_up().await } else { turn };
                let _ = reply.send(Ok(waited));
                next
            }
            Command::WillEnd(reply) => {
                let next = if matches!(turn, Turn::Waits(_)) { self.give_up().await } else { turn };
                let _ = reply.send(Ok(()));
                next
            }
            Command::Attach(listener, reply) => {
                let _ = reply.send(self.listen(listener).await);
                turn
            }
            Command::Rename(name, reply) => {
                let _ = reply.send(self.rename(name).await);
                turn
            }
            Command::Update(restart, max_restarts, reply) => {
                let waits = matches!(turn, Turn::Waits(_)) && self.record.restart() != Restart::No;
                let updated = self.update(restart, max_restarts).await;
                let ends = updated.is_ok() && waits && restart == Restart::No;
                // Nothing is to start it any more.
                let next = if ends { self.follow(Next::Stay).await } else { turn };
                let _ = reply.send(updated);
                next
            }
            Command::Remove { force: false, reply, .. } if matches!(turn, Turn::Waits(_)) => {
                let _ = reply.send(Err(PlainError::Restarting(self.record.name.clone())));
                turn
            }
            Command::Remove { volumes, reply, .. } => {
                let removed = self.remove(volumes).await;
                let next = if removed.is_ok() { Turn::Gone } else { turn };
                let _ = reply.send(removed);
                next
            }
        }
    }

    /// A command to one that is to be removed.
    async fn leave(&mut self, command: Command, left: String, at: Instant) -> Turn {
        let error = PlainError::Leaving { name: self.record.name.clone(), left: left.clone() };
        match command {
            Command::Start(reply) => drop(reply.send(Err(error))),
            Command::Stop(_, _, reply) => drop(reply.send(Ok(false))),
            Command::WillEnd(reply) => drop(reply.send(Ok(()))),
            Command::Restart(_, _, reply)
            | Command::Attach(_, reply)
            | Command::Rename(_, reply)
            | Command::Update(_, _, reply) => drop(reply.send(Err(error))),
            Command::Remove { reply, .. } => {
                let removed = self.remove(true).await;
                let gone = removed.is_ok();
                let _ = reply.send(removed);
                if gone {
                    return Turn::Gone;
                }
            }
        }
        Turn::Goes { left, at }
    }

    /// Its user has stopped it while it waited for a start.
    async fn give_up(&mut self) -> Turn {
        (self.record.stopped, self.record.wanted) = (true, false);
        self.give_place_back();
        self.save_or_tell().await;
        Turn::Rests
    }

    /// What follows a start by its user, who is told in between. `waited`: it was about to be started anyway.
    async fn settle(
        &mut self,
        started: Result<(), PlainError>,
        waited: bool,
        tell: impl FnOnce(Result<(), PlainError>),
    ) -> Turn {
        let next = match &started {
            Ok(()) => Turn::Runs { adopted: false },
            Err(error) => {
                let next = policy::not_started_by_user(&self.record, error, waited);
                self.record.wanted = matches!(next, Next::Retry(_));
                self.give_place_back();
                self.save_or_tell().await;
                self.follow(next).await
            }
        };
        tell(started);
        next
    }

    async fn rename(&mut self, name: String) -> Result<(), PlainError> {
        let shared = Arc::clone(&self.shared);
        if let Some(network) = self.record.spec.cluster_networks().next().filter(|_| !self.record.place.is_none()) {
            let (name, network) = (self.record.name.clone(), network.target.clone());
            return Err(PlainError::KnownByName { name, network });
        }
        shared.take_name(&self.record.id, &name)?;
        // With this it is done: a daemon that finds another name in the record takes the label's.
        let labelled = shared.config.runtime.set_label(&self.record.id, PLAIN_LABEL, &name).await;
        if let Err(error) = labelled {
            shared.renamed(&self.record.id, &self.record.name);
            return Err(error.into());
        }
        let before = std::mem::replace(&mut self.record.name, name);
        self.save_or_tell().await;
        shared.renamed(&self.record.id, &self.record.name);
        shared.rename_local(&self.record);
        shared.config.runtime.tell(&self.record.id, "rename", vec![("oldName", format!("/{before}"))]);
        Ok(())
    }

    async fn update(&mut self, restart: Restart, max_restarts: u32) -> Result<(), PlainError> {
        if self.record.auto_remove && restart != Restart::No {
            return Err(PlainError::RemovedAtEnd);
        }
        let before = (self.record.restart, self.record.max_restarts);
        self.record.set_restart(restart);
        self.record.max_restarts = max_restarts;
        if let Err(error) = self.save().await {
            (self.record.restart, self.record.max_restarts) = before;
            return Err(error);
        }
        self.tell("update");
        Ok(())
    }

    async fn listen(&mut self, listener: Listener) -> Result<(), PlainError> {
        let shared = Arc::clone(&self.shared);
        match self.status().await {
            Some(Status::Exited(_)) => {
                self.listeners.retain(|listener| !listener.has_gone());
                if self.listeners.len() >= MAX_LISTENERS {
                    return Err(PlainError::TooManyListeners);
                }
                self.listeners.push(listener);
            }
            _ => listener.open(&shared.config.runtime, &self.record.id).await,
        }
        Ok(())
    }

    async fn runs(&mut self, adopted: bool, inbox: &mut mpsc::Receiver<Command>) -> Turn {
        let (shared, record) = (Arc::clone(&self.shared), self.record.clone());
        let mut ended = pin!(shared.config.runtime.wait(&record.id));
        let mut watched = pin!(watch(&shared, &record, adopted));
        // Who wants it started again, each with the number of its stop, in the order in which they came.
        let mut restarting: Vec<(u64, Reply<()>)> = Vec::new();
        // All that are under way. That of a restart says its number and why, if it fails.
        let (mut stops, mut number) = (JoinSet::<Option<(u64, RuntimeError)>>::new(), 0u64);
        loop {
            tokio::select! {
                biased;
                end = &mut ended => {
                    return match end {
                        Ok(exit) => {
                            // It has ended, so they are over soon; not before that is there another run, which they would kill.
                            while stops.join_next().await.is_some() {}
                            self.ended(exit, restarting.into_iter().map(|(_, reply)| reply).collect()).await
                        }
                        // It goes on, without this daemon.
                        Err(RuntimeError::Closing) => std::future::pending().await,
                        Err(error) => {
                            tracing::warn!(container.id = record.id, error = crate::chain(&error), "a container is lost");
                            self.disconnect().await;
                            self.forget().await;
                            Turn::Gone
                        }
                    };
                }
                // Otherwise its end is on its way here, too.
                Some(Ok(stopped)) = stops.join_next() => {
                    if let Some((number, error)) = stopped
                        && let Some(place) = restarting.iter().position(|(of, _)| *of == number)
                    {
                        let _ = restarting.remove(place).1.send(Err(PlainError::Runtime(error)));
                    }
                }
                command = inbox.recv() => match command {
                    None => return Turn::Gone,
                    Some(Command::Start(reply)) => {
                        let paused = self.state().await.is_some_and(|state| state.paused);
                        let _ = reply.send(if paused { Err(PlainError::Paused) } else { Ok(false) });
                    }
                    Some(Command::Stop(signal, grace, reply)) => {
                        self.record.stopped = true;
                        // What is said last is done.
                        for (_, reply) in restarting.drain(..) {
                            let _ = reply.send(Err(PlainError::Stopped(self.record.name.clone())));
                        }
                        // A disk without room keeps nobody running.
                        self.save_or_tell().await;
                        let (shared, id) = (Arc::clone(&shared), record.id.clone());
                        stops.spawn(async move {
                            let stopped = shared.config.runtime.stop(&id, signal, grace).await;
                            let _ = reply.send(stopped.map(|_| true).map_err(PlainError::from));
                            None
                        });
                    }
                    Some(Command::Restart(signal, grace, reply)) => {
                        number += 1;
                        restarting.push((number, reply));
                        let (shared, id, number) = (Arc::clone(&shared), record.id.clone(), number);
                        stops.spawn(async move {
                            let stopped = shared.config.runtime.stop(&id, signal, grace).await;
                            stopped.err().map(|error| (number, error))
                        });
                    }
                    Some(Command::WillEnd(reply)) => {
                        self.record.stopped = true;
                        self.save_or_tell().await;
                        let _ = reply.send(Ok(()));
                    }
                    Some(Command::Attach(listener, reply)) => {
                        listener.open(&shared.config.runtime, &record.id).await;
                        let _ = reply.send(Ok(()));
                    }
                    Some(Command::Rename(name, reply)) => drop(reply.send(self.rename(name).await)),
                    Some(Command::Update(restart, max_restarts, reply)) => {
                        let _ = reply.send(self.update(restart, max_restarts).await);
                    }
                    Some(Command::Remove { force: false, reply, .. }) => {
                        let _ = reply.send(Err(PlainError::Running(self.record.name.clone())));
                    }
                    Some(Command::Remove { force: true, volumes, reply }) => {
                        let removed = self.remove(volumes).await;
                        let gone = removed.is_ok();
                        let _ = reply.send(removed);
                        if gone {
                            // Who stopped it is told that it has stopped.
                            stops.detach_all();
                            return Turn::Gone;
                        }
                    }
                },
                () = &mut watched => {}
            }
        }
    }

    /// `restarting`: those who have stopped it to start it again.
    async fn ended(&mut self, exit: ExitStatus, mut restarting: Vec<Reply<()>>) -> Turn {
        self.disconnect().await;
        let state = self.state().await;
        let end = state.map_or(End { code: exit.code, ran: Duration::ZERO }, |state| end_of(&state, &exit));
        if restarting.is_empty() {
            let next = policy::after(&self.record, end, self.pause);
            return self.follow(next).await;
        }
        let started = self.start_anew().await;
        if started.is_ok() {
            self.tell("restart");
        }
        self.settle(started, false, |started| {
            let first = restarting.pop();
            for reply in restarting {
                let _ = reply.send(match &started {
                    Ok(()) => Ok(()),
                    Err(error) => Err(PlainError::Restart(crate::chain(error))),
                });
            }
            if let Some(first) = first {
                let _ = first.send(started);
            }
        })
        .await
    }

    async fn follow(&mut self, next: Next) -> Turn {
        match next {
            Next::Again(pause) if pause <= KEEP => {}
            _ => self.give_place_back(),
        }
        match next {
            Next::Stay => {
                if std::mem::take(&mut self.record.wanted) {
                    self.save_or_tell().await;
                }
                Turn::Rests
            }
            Next::Retry(pause) => Turn::Waits(Instant::now() + pause),
            Next::Again(pause) => {
                (self.pause, self.record.wanted, self.record.stopped) = (pause, true, false);
                self.record.restarts = self.record.restarts.saturating_add(1);
                self.save_or_tell().await;
                Turn::Waits(Instant::now() + pause)
            }
            Next::Remove => self.remove_at_last().await,
        }
    }

    /// As its restart policy wants.
    async fn again(&mut self) -> Turn {
        let Err(error) = self.start().await else {
            self.retries = false;
            return Turn::Runs { adopted: false };
        };
        let next = policy::not_started(&self.record, &error, self.pause);
        // Once for as long as there is no manager, or no address.
        let told = std::mem::replace(&mut self.retries, matches!(next, Next::Retry(_)));
        if !(told && self.retries) {
            tracing::warn!(
                container.id = self.record.id,
                container.name = self.record.name,
                error = crate::chain(&error),
                "a container could not be started again"
            );
        }
        self.follow(next).await
    }

    /// As its user wants. What follows from that is for [`Keeper::settle`].
    async fn start_anew(&mut self) -> Result<(), PlainError> {
        (self.record.stopped, self.record.restarts, self.pause) = (false, 0, Duration::ZERO);
        self.retries = false;
        self.start().await
    }

    fn tell(&self, action: &str) {
        self.shared.config.runtime.tell(&self.record.id, action, Vec::new());
    }

    /// Whether it is still wanted when that fails is the caller's to say.
    async fn start(&mut self) -> Result<(), PlainError> {
        let status = self.status().await.ok_or_else(|| PlainError::NotFound(self.record.id.clone()))?;
        if status == Status::Running {
            return Ok(());
        }
        let started = self.begin_run(&status).await;
        if started.is_err() {
            self.disconnect().await;
        }
        started
    }

    async fn begin_run(&mut self, status: &Status) -> Result<(), PlainError> {
        let (shared, id) = (Arc::clone(&self.shared), self.record.id.clone());
        let runtime = &shared.config.runtime;
        // First: one that gets none stays as it is, and how it ended is not forgotten.
        self.take_place().await?;
        let netns = match status {
            Status::Created if self.record.spec.network_mode() == NetworkMode::Host => None,
            Status::Created => Some(runtime.netns(&id).await?),
            Status::Exited(_) | Status::Running => Some(runtime.renew(&id).await?.netns),
        };
        shared.renewed(&id);
        for listener in std::mem::take(&mut self.listeners) {
            listener.open(runtime, &id).await;
        }
        self.record.wanted = true;
        if let Some(netns) = netns {
            self.connect(netns).await?;
        }
        // First: a daemon that comes in between starts it.
        self.save().await?;
        Ok(runtime.start(&id).await?)
    }

    async fn remove(&mut self, volumes: bool) -> Result<(), PlainError> {
        let (shared, id) = (Arc::clone(&self.shared), self.record.id.clone());
        // With --rm they go, whoever removes it.
        if !volumes && !self.record.auto_remove {
            shared.config.runtime.keep_volumes(&id).await?;
        }
        shared.config.runtime.delete(&id).await?;
        self.disconnect().await;
        let removed = tokio::task::spawn_blocking(move || shared.records.remove(&id)).await;
        removed.map_err(|_| PlainError::Ended)??;
        self.shared.forget(&self.record.id);
        Ok(())
    }

    /// Of one that is removed when it has ended; again later, if anything resists.
    async fn remove_at_last(&mut self) -> Turn {
        let Err(error) = self.remove(true).await else { return Turn::Gone };
        let left = crate::chain(&error);
        tracing::warn!(container.id = self.record.id, error = left, "a container could not be removed; trying again");
        Turn::Goes { left, at: Instant::now() + RETRY }
    }

    /// Of one that is gone.
    async fn forget(&mut self) {
        let (records, id) = (self.shared.records.clone(), self.record.id.clone());
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || records.remove(&id)).await {
            tracing::warn!(
                container.id = self.record.id,
                error = crate::chain(&error),
                "a container could not be forgotten"
            );
        }
        self.shared.forget(&self.record.id);
    }

    async fn state(&self) -> Option<ContainerState> {
        self.shared.config.runtime.list().await.into_iter().find(|state| state.id == self.record.id)
    }

    async fn status(&self) -> Option<Status> {
        self.state().await.map(|state| state.status)
    }

    async fn save(&self) -> Result<(), PlainError> {
        self.shared.write(&self.record).await
    }

    async fn save_or_tell(&self) {
        if let Err(error) = self.save().await {
            tracing::warn!(
                container.id = self.record.id,
                error = crate::chain(&error),
                "a container could not be remembered"
            );
        }
    }
}

fn end_of(state: &ContainerState, exit: &ExitStatus) -> End {
    let ran = state.started_at.and_then(|at| exit.finished_at.duration_since(at).ok());
    End { code: exit.code, ran: ran.unwrap_or_default() }
}

/// Keeps an adopted container's network, and asks for its health. Never ends.
async fn watch(shared: &Shared, record: &Record, adopted: bool) {
    if adopted {
        while let Err(error) = reattach(shared, record).await {
            tracing::warn!(
                container.id = record.id,
                error,
                "an adopted container's network could not be taken over; trying again"
            );
            tokio::time::sleep(RETRY).await;
        }
    }
    let images = shared.config.images.clone();
    // The one that it was made of: by now its name may be another's.
    let here = shared.config.runtime.list().await.into_iter().find(|state| state.id == record.id);
    let image = here.and_then(|state| state.labels.get(IMAGE_LABEL).cloned()).unwrap_or_default();
    let resolved = tokio::task::spawn_blocking(move || images.resolve(&image)).await;
    let image = resolved.ok().and_then(Result::ok).map(|image| image.config).unwrap_or_default();
    let wanted = record.spec.container.healthcheck.as_ref();
    let Some(check) = health::check(wanted, image.healthcheck.as_ref(), &image.shell) else {
        return std::future::pending().await;
    };
    let (tell, mut told) = mpsc::channel(1);
    let asking = health::watch(&shared.config.runtime, &record.id, check, false, tell);
    let telling = async {
        let mut known = true;
        while let Some(health) = told.recv().await {
            // What is told first was so before.
            if !std::mem::take(&mut known) {
                let status = format!("health_status: {}", health.word());
                shared.config.runtime.tell(&record.id, &status, Vec::new());
            }
        }
    };
    tokio::join!(asking, telling);
    std::future::pending().await
}
