//! Agreement: the replicated, durable log under the manager set.
