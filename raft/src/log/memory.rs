//! What the log holds, as readers see it: all entries that are not purged, durable or not yet.

use std::collections::VecDeque;
use std::io;

use super::id_of;
use super::replay::HardState;
use crate::types::{Entry, LogId, Vote};
use crate::wire;

/// The log in memory.
#[derive(Debug)]
pub(super) struct Memory {
    entries: VecDeque<Entry>,
    hard: HardState,
    bytes: usize,
}

impl Memory {
    pub(super) fn new(entries: VecDeque<Entry>, mut hard: HardState) -> Self {
        let bytes = entries.iter().map(wire::entry_size).sum();
        // The commit mark is written behind the entries that it names, so it can exceed them only when they
        // were truncated later, which commits forbid; openraft must never be told of entries that are not
        // there, so it is checked all the same.
        let last = entries.back().map(id_of).max(hard.purged);
        hard.committed = hard.committed.min(last);
        Self { entries, hard, bytes }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn vote(&self) -> Option<Vote> {
        self.hard.vote
    }

    pub(super) fn set_vote(&mut self, vote: Vote) {
        self.hard.vote = Some(vote);
    }

    pub(super) fn committed(&self) -> Option<LogId> {
        self.hard.committed
    }

    pub(super) fn set_committed(&mut self, committed: LogId) {
        self.hard.committed = Some(committed);
    }

    pub(super) fn purged(&self) -> Option<LogId> {
        self.hard.purged
    }

    pub(super) fn last(&self) -> Option<LogId> {
        self.entries.back().map(id_of).or(self.hard.purged)
    }

    /// Entries of `from..to`, the first always and then as many as fit into `limit` bytes.
    pub(super) fn read(&self, from: u64, to: u64, limit: usize) -> Vec<Entry> {
        let Some(first) = self.entries.front().map(|entry| entry.log_id.index) else { return Vec::new() };
        let skip = from.saturating_sub(first).min(self.entries.len() as u64) as usize;
        let end = to.saturating_sub(first).min(self.entries.len() as u64) as usize;
        if skip >= end {
            return Vec::new();
        }
        let mut size = 0;
        let mut out = Vec::with_capacity(end - skip);
        for entry in self.entries.range(skip..end) {
            size += wire::entry_size(entry);
            if size > limit && !out.is_empty() {
                break;
            }
            out.push(entry.clone());
        }
        out
    }

    pub(super) fn append(&mut self, entries: &[Entry]) -> io::Result<()> {
        for entry in entries {
            let next = self.last().map_or(0, |id| id.index + 1);
            if entry.log_id.index != next {
                let index = entry.log_id.index;
                return Err(io::Error::other(format!("entry {index} appended where {next} belongs")));
            }
            self.bytes += wire::entry_size(entry);
            self.entries.push_back(entry.clone());
        }
        Ok(())
    }

    pub(super) fn truncate_after(&mut self, last: Option<u64>) {
        while let Some(entry) = self.entries.back()
            && last.is_none_or(|last| entry.log_id.index > last)
        {
            self.bytes -= wire::entry_size(entry);
            self.entries.pop_back();
        }
    }

    pub(super) fn purge(&mut self, up_to: LogId) {
        while let Some(entry) = self.entries.front()
            && entry.log_id.index <= up_to.index
        {
            self.bytes -= wire::entry_size(entry);
            self.entries.pop_front();
        }
        self.hard.purged = Some(up_to);
    }
}
