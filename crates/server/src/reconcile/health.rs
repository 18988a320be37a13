//! What is known of the container runtime, for those who accept work and for health checks.

use std::sync::{Mutex, PoisonError};

use super::ReconcilerParts;
use crate::orchestrator::{Admission, Refusal};
use crate::runtime::RuntimeError;

/// What was last seen of the runtime.
#[derive(Debug)]
pub struct RuntimeHealth {
    refusal: Mutex<Option<Refusal>>,
}

impl Default for RuntimeHealth {
    /// Out of reach until seen otherwise.
    fn default() -> Self {
        Self { refusal: Mutex::new(Some(Refusal::RuntimeUnavailable)) }
    }
}

impl RuntimeHealth {
    pub(super) fn unreachable(&self) {
        self.set(Some(Refusal::RuntimeUnavailable));
    }

    /// The runtime has answered; whether it has the image is asked here.
    pub(super) async fn reachable(&self, parts: &ReconcilerParts) {
        let image = &parts.settings.image;
        let refusal = match parts.runtime.check_image(image).await {
            Ok(()) => None,
            Err(RuntimeError::ImageMissing { image }) => Some(Refusal::ImageMissing { image }),
            Err(_) => Some(Refusal::RuntimeUnavailable),
        };
        self.set(refusal);
    }

    pub(super) fn image_missing(&self, image: &str) {
        self.set(Some(Refusal::ImageMissing { image: image.to_owned() }));
    }

    fn set(&self, refusal: Option<Refusal>) {
        let mut known = self.refusal.lock().unwrap_or_else(PoisonError::into_inner);
        if *known != refusal {
            match &refusal {
                None => tracing::info!("the container runtime is ready"),
                Some(refusal) => tracing::warn!("{refusal}"),
            }
        }
        *known = refusal;
    }
}

impl Admission for RuntimeHealth {
    fn check(&self) -> Result<(), Refusal> {
        let known = self.refusal.lock().unwrap_or_else(PoisonError::into_inner);
        known.clone().map_or(Ok(()), Err)
    }
}
