//! The one writer: takes all requests that are waiting, commits them together, then answers.
//!
//! Under load the cost of a commit (an fsync) is shared by up to [`BATCH_MAX`] requests; a request
//! that comes alone waits for nobody.

use std::collections::VecDeque;
use std::fs::File;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::batch::{Batch, KnownKeys, Request};
use super::directory::Directory;
use super::sqlite::{Database, is_locked};
use super::sqlite_reads::Reads;
use super::types::StoreError;
use super::watchers::Watchers;
use crate::failpoint;

/// The most requests in one transaction.
const BATCH_MAX: usize = 256;
/// The most requests that wait; further ones wait to be let in.
pub(super) const QUEUE_MAX: usize = 1_024;

/// Owns the writing connection, and the lock for as long as anything may be written.
pub(super) struct Writer {
    pub(super) database: Database,
    pub(super) reads: Reads,
    pub(super) directory: Arc<Directory>,
    pub(super) watchers: Arc<Watchers>,
    pub(super) requests: mpsc::Receiver<Request>,
    pub(super) lock: File,
    pub(super) closing: bool,
}

impl Writer {
    /// Runs until it is told to close or nobody is left to ask.
    pub(super) async fn run(mut self) {
        let mut waiting: VecDeque<Request> = VecDeque::new();
        let mut arrived = Vec::with_capacity(BATCH_MAX);
        while !self.closing || !waiting.is_empty() {
            if waiting.is_empty() {
                if self.requests.recv_many(&mut arrived, BATCH_MAX).await == 0 {
                    break;
                }
            } else {
                let room = BATCH_MAX.saturating_sub(waiting.len());
                let taken = std::iter::from_fn(|| self.requests.try_recv().ok());
                arrived.extend(taken.take(room));
            }
            for request in arrived.drain(..) {
                match request {
                    Request::Close => self.closing = true,
                    late if self.closing => late.refuse(StoreError::closed()),
                    request => waiting.push_back(request),
                }
            }
            waiting = self.write(waiting).await;
        }
        self.end().await;
    }

    /// Writes one batch and answers it; gives back what must wait for the next.
    async fn write(&mut self, mut waiting: VecDeque<Request>) -> VecDeque<Request> {
        let keys: Vec<String> = waiting.iter().filter_map(Request::key_hash).collect();
        let known = match self.reads.known_keys(&keys).await {
            Ok(known) => known,
            Err(error) => {
                self.refuse(waiting, &error);
                return VecDeque::new();
            }
        };
        let (batch, rest) = match self.collect(&mut waiting, &known) {
            Ok(collected) => collected,
            Err(error) => {
                // The batch with its replies is gone; their askers see a closed channel.
                tracing::error!(%error, "a session cannot be written as JSON");
                return waiting;
            }
        };
        let outcome = if batch.rows.is_empty() {
            Ok(())
        } else {
            failpoint::reach("store_committing");
            let applied = self.database.apply(batch.rows).await;
            failpoint::reach("store_committed");
            applied
        };
        match outcome {
            Ok(()) => {
                self.directory.apply(batch.changes);
                self.watchers.tell(&batch.news);
                batch.replies.into_iter().for_each(|reply| reply(Ok(())));
                rest
            }
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "a commit failed");
                let replies = batch.replies.into_iter();
                replies.for_each(|reply| reply(Err(error.clone())));
                if !is_locked(&error) {
                    return rest;
                }
                // They waited as long as the batch did. Trying each batch now would make the
                // last of them wait for as many timeouts as there are batches.
                self.refuse(rest, &error);
                VecDeque::new()
            }
        }
    }

    fn collect(
        &self,
        waiting: &mut VecDeque<Request>,
        known: &KnownKeys,
    ) -> Result<(Batch, VecDeque<Request>), serde_json::Error> {
        let tables = self.directory.tables();
        let mut batch = Batch::default();
        let mut rest = VecDeque::new();
        while let Some(request) = waiting.pop_front() {
            rest.extend(batch.take(request, &tables, known)?);
        }
        Ok((batch, rest))
    }

    /// Refuses those that were taken off the queue, and those on it.
    fn refuse(&mut self, waiting: VecDeque<Request>, error: &StoreError) {
        let queued = self.requests.len();
        for request in waiting {
            request.refuse(error.clone());
        }
        for _ in 0..queued {
            match self.requests.try_recv() {
                Ok(Request::Close) => self.closing = true,
                Ok(request) => request.refuse(error.clone()),
                Err(_) => break,
            }
        }
    }

    async fn end(mut self) {
        self.requests.close();
        while let Ok(request) = self.requests.try_recv() {
            request.refuse(StoreError::closed());
        }
        self.database.close().await;
        // Only now may another server write.
        drop(self.lock);
    }
}
