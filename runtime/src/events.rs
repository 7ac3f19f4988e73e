//! What happens to the containers, images and volumes of this host, told to whoever listens.
//!
//! Told from where it happens; the API reads it. There is one journal, in memory and of bounded size, and nobody who
//! listens has a buffer: a [`Listener`] is a place in the journal. Who is too slow costs nothing, is overtaken, and is
//! told so.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio::sync::watch;

/// Events that are kept, for those who ask for the past and those who are slow. Docker keeps 256.
const MAX_EVENTS: usize = 1024;
/// Bytes that all of them may have, labels counted with each.
const MAX_BYTES: usize = 4 << 20;
/// What an event has beside its texts, about.
const OVERHEAD: usize = 200;

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// A container, by its id.
    Container,
    /// An image, by its id or a name.
    Image,
    /// A volume, by its name.
    Volume,
    /// A network of this host alone, by its id; whoever makes them tells.
    Network,
}

/// Something that happened. The words are Docker's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// When it was told.
    pub at: SystemTime,
    /// What it is about.
    pub kind: EventKind,
    /// What happened: `start`, `die`, `health_status: healthy`, ...
    pub action: String,
    /// To which one.
    pub id: String,
    /// Its labels.
    pub labels: Arc<BTreeMap<String, String>>,
    /// What else there is to say; wins over a label of the same name.
    pub attributes: Vec<(&'static str, String)>,
}

/// The journal. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Events {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    journal: Mutex<Journal>,
    /// Number of the event that comes next.
    next: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Journal {
    /// Number of the oldest that is kept; they are counted from 0.
    first: u64,
    kept: VecDeque<(usize, Arc<Event>)>,
    bytes: usize,
}

/// Where somebody who listens has come to.
#[derive(Debug)]
pub struct Listener {
    events: Events,
    next: watch::Sender<u64>,
    told: watch::Receiver<u64>,
}

/// The listener was too slow: events that it has not seen are not kept any more. It goes on with the oldest that is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too slow: {lost} events were not seen")]
pub struct Overtaken {
    /// How many.
    pub lost: u64,
}

impl EventKind {
    /// Docker's word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            EventKind::Container => "container",
            EventKind::Image => "image",
            EventKind::Volume => "volume",
            EventKind::Network => "network",
        }
    }
}

impl Event {
    fn bytes(&self) -> usize {
        let labels: usize = self.labels.iter().map(|(key, value)| key.len() + value.len()).sum();
        let attributes: usize = self.attributes.iter().map(|(key, value)| key.len() + value.len()).sum();
        OVERHEAD + self.action.len() + self.id.len() + labels + attributes
    }
}

impl Default for Events {
    fn default() -> Self {
        Self { shared: Arc::new(Shared { journal: Mutex::default(), next: watch::Sender::new(0) }) }
    }
}

impl Events {
    fn journal(&self) -> MutexGuard<'_, Journal> {
        // Nothing panics while it is held, and each change leaves it whole.
        self.shared.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells something. Never waits for anybody who listens.
    pub fn tell(
        &self,
        kind: EventKind,
        action: impl Into<String>,
        id: impl Into<String>,
        labels: &Arc<BTreeMap<String, String>>,
        attributes: Vec<(&'static str, String)>,
    ) {
        let (action, id, labels) = (action.into(), id.into(), Arc::clone(labels));
        let mut journal = self.journal();
        // Under the lock, so that the order is that of the times.
        let event = Event { at: SystemTime::now(), kind, action, id, labels, attributes };
        let bytes = event.bytes();
        journal.bytes += bytes;
        journal.kept.push_back((bytes, Arc::new(event)));
        let next = journal.first + journal.kept.len() as u64;
        while journal.kept.len() > MAX_EVENTS || journal.bytes > MAX_BYTES {
            let Some((bytes, _)) = journal.kept.pop_front() else { break };
            journal.bytes -= bytes;
            journal.first += 1;
        }
        self.shared.next.send_replace(next);
    }

    /// Listens to what comes from now on.
    #[must_use]
    pub fn listen(&self) -> Listener {
        let journal = self.journal();
        self.listener(journal.first + journal.kept.len() as u64)
    }

    /// Listens to what is kept, the oldest first, and to what comes.
    #[must_use]
    pub fn listen_from_the_oldest(&self) -> Listener {
        let first = self.journal().first;
        self.listener(first)
    }

    fn listener(&self, next: u64) -> Listener {
        Listener { events: self.clone(), next: watch::Sender::new(next), told: self.shared.next.subscribe() }
    }
}

impl Listener {
    /// The next event, as soon as there is one.
    ///
    /// # Errors
    /// [`Overtaken`].
    pub async fn next(&mut self) -> Result<Arc<Event>, Overtaken> {
        loop {
            // Marked as seen before the look, so that what is told after it wakes us.
            self.told.borrow_and_update();
            if let Some(event) = self.next_now()? {
                return Ok(event);
            }
            // The sender lives in our own handle of the journal.
            let _ = self.told.changed().await;
        }
    }

    /// The next event, if there is one already.
    ///
    /// # Errors
    /// [`Overtaken`].
    pub fn next_now(&mut self) -> Result<Option<Arc<Event>>, Overtaken> {
        let journal = self.events.journal();
        let next = *self.next.borrow();
        if next < journal.first {
            let lost = journal.first - next;
            self.next.send_replace(journal.first);
            return Err(Overtaken { lost });
        }
        let place = usize::try_from(next - journal.first).unwrap_or(usize::MAX);
        let found = journal.kept.get(place).map(|(_, event)| Arc::clone(event));
        if found.is_some() {
            self.next.send_replace(next + 1);
        }
        Ok(found)
    }

    /// Ends when this listener is overtaken, also when nobody asks it for anything; never once it is dropped.
    pub fn overtaken(&self) -> impl Future<Output = ()> + Send + use<> {
        let (events, next) = (self.events.clone(), self.next.subscribe());
        let mut told = events.shared.next.subscribe();
        async move {
            while next.has_changed().is_ok() && *next.borrow() >= events.journal().first {
                let _ = told.changed().await;
            }
            if next.has_changed().is_err() {
                std::future::pending().await
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn tell(events: &Events, number: u64, label: &str) {
        let labels = Arc::new(BTreeMap::from([("l".to_owned(), label.to_owned())]));
        events.tell(EventKind::Volume, "create", number.to_string(), &labels, vec![("driver", "local".to_owned())]);
    }

    /// Events, and their bytes.
    fn kept(events: &Events) -> (usize, usize) {
        let journal = events.journal();
        (journal.kept.len(), journal.bytes)
    }

    async fn id(listener: &mut Listener) -> String {
        listener.next().await.unwrap().id.clone()
    }

    #[tokio::test]
    async fn who_listens_hears_what_comes_and_who_wants_to_what_was() {
        let events = Events::default();
        tell(&events, 0, "");
        let (mut new, mut all) = (events.listen(), events.listen_from_the_oldest());
        let told = events.clone();
        let telling = async move {
            tokio::task::yield_now().await;
            tell(&told, 1, "");
            tell(&told, 2, "");
        };
        let ((), first) = tokio::join!(telling, id(&mut new));
        assert_eq!((first.as_str(), id(&mut new).await.as_str()), ("1", "2"));
        for expected in ["0", "1", "2"] {
            assert_eq!(id(&mut all).await, expected);
        }
        assert_eq!((new.next_now(), all.next_now()), (Ok(None), Ok(None)));
    }

    #[tokio::test]
    async fn who_is_slow_is_overtaken_and_the_journal_does_not_grow() {
        let events = Events::default();
        let mut slow = events.listen();
        let (overtaken, unheard) = (slow.overtaken(), events.listen().overtaken());
        tell(&events, 0, "");
        assert!(tokio::time::timeout(Duration::from_millis(1), slow.overtaken()).await.is_err(), "not yet");
        for number in 1..=MAX_EVENTS as u64 + 5 {
            tell(&events, number, "");
        }
        overtaken.await;
        assert_eq!(self::kept(&events).0, MAX_EVENTS);
        assert_eq!(slow.next().await, Err(Overtaken { lost: 6 }));
        assert_eq!(id(&mut slow).await, "6");
        // One that is gone is nobody's concern.
        assert!(tokio::time::timeout(Duration::from_millis(1), unheard).await.is_err());
        // Large ones leave room for fewer; one that is larger than all room is not kept, and counts.
        let large = "x".repeat(MAX_BYTES / 4);
        for number in 0..10 {
            tell(&events, number, &large);
        }
        let kept = kept(&events);
        assert!(kept.0 == 3 && kept.1 <= MAX_BYTES, "{kept:?}");
        let mut now = events.listen();
        tell(&events, 10, &"x".repeat(MAX_BYTES));
        assert_eq!(self::kept(&events), (0, 0));
        assert_eq!(now.next().await, Err(Overtaken { lost: 1 }));
        tell(&events, 11, "");
        assert_eq!(id(&mut now).await, "11");
    }
}
