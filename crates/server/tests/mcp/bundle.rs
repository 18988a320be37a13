//! The bundle that `make mcpb` builds.

use std::path::Path;

use tokio::process::Command;

use crate::app::App;
use crate::program::{node, passes};
use crate::sdks::reaching;

#[tokio::test(flavor = "multi_thread")]
async fn bundle_is_valid_and_speaks_mcp_when_it_is_installed() {
    let directory = tempfile::tempdir().expect("a directory");
    let bundle = directory.path().join("baton.mcpb");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/mcpb");
    // Validates as it packs.
    passes(
        Command::new(script)
            .arg(env!("CARGO_BIN_EXE_baton"))
            .arg(&bundle),
    )
    .await;
    let app = App::new().await;
    let mut client = node("bundle.mjs");
    passes(reaching(client.arg(&bundle), &app)).await;
}
