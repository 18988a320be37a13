//! What is known of the container runtime, for those who accept work and for health checks.

use std::time::Duration;

use tokio::sync::watch;

use super::ReconcilerParts;
use crate::orchestrator::{Admission, Refusal};
use crate::runtime::RuntimeError;

/// What was last seen of the runtime.
#[derive(Debug)]
pub struct RuntimeHealth {
    seen: watch::Sender<Seen>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    NotYet,
    Ready,
    Refuses(Refusal),
}

impl Default for RuntimeHealth {
    /// Out of reach until seen otherwise.
    fn default() -> Self {
        Self {
            seen: watch::Sender::new(Seen::NotYet),
        }
    }
}

impl RuntimeHealth {
    /// Waits until the runtime was looked at for the first time, at most `wait`.
    pub async fn first_look(&self, wait: Duration) {
        let mut seen = self.seen.subscribe();
        let looked = seen.wait_for(|seen| *seen != Seen::NotYet);
        // Without an answer by then, requests are told that the runtime is out of reach.
        let _ = tokio::time::timeout(wait, looked).await;
    }

    pub(super) fn unreachable(&self) {
        self.set(Seen::Refuses(Refusal::RuntimeUnavailable));
    }

    /// The runtime has answered; whether it has the image is asked here.
    pub(super) async fn reachable(&self, parts: &ReconcilerParts) {
        let image = &parts.settings.image;
        self.set(match parts.runtime.check_image(image).await {
            Ok(()) => Seen::Ready,
            Err(RuntimeError::ImageMissing { image }) => {
                Seen::Refuses(Refusal::ImageMissing { image })
            }
            Err(_) => Seen::Refuses(Refusal::RuntimeUnavailable),
        });
    }

    pub(super) fn image_missing(&self, image: &str) {
        self.set(Seen::Refuses(Refusal::ImageMissing {
            image: image.to_owned(),
        }));
    }

    fn set(&self, seen: Seen) {
        self.seen.send_if_modified(|known| {
            if *known == seen {
                return false;
            }
            match &seen {
                Seen::Refuses(refusal) => tracing::warn!("{refusal}"),
                _ => tracing::info!("the container runtime is ready"),
            }
            *known = seen;
            true
        });
    }
}

impl Admission for RuntimeHealth {
    fn check(&self) -> Result<(), Refusal> {
        match &*self.seen.borrow() {
            Seen::Ready => Ok(()),
            Seen::NotYet => Err(Refusal::RuntimeUnavailable),
            Seen::Refuses(refusal) => Err(refusal.clone()),
        }
    }
}
