//! Docker, as far as it is the baseline: the same containers, driven with nothing between.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result};
use bollard::Docker;
use bollard::models::{ContainerCreateBody, MountType};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, EventsOptionsBuilder, InspectContainerOptions,
    RemoveContainerOptionsBuilder, StartContainerOptions, WaitContainerOptionsBuilder,
};
use futures::TryStreamExt as _;

use crate::Bench;
use crate::home::{remove_labelled, run};

/// The image sessions run in by default, and which ours is made from.
const BASE: &str = "claudecode:latest";

/// Stands in for Claude Code: does at once what the first line of its prompt says, which comes as
/// a message in JSON.
const CLAUDE: &str = r#"#!/bin/sh
read -r message
asked=${message#*'"content":"'}
asked=${asked%%[\\\"]*}
order=${asked%% *} rest=${asked#* }
echo '{"type":"system","subtype":"init","session_id":"00000000-0000-4000-8000-000000000000"}'
case $order in
wait) exec sleep infinity ;;
print) yes "$(printf '%0'"$((rest - 1))"'d' 0)" | head -c 200000000 ;;
write) echo "$rest" >"$rest.txt" ;;
esac
echo '{"type":"result","subtype":"success","is_error":false,"result":"Done.","total_cost_usd":0}'
"#;

/// An image whose `claude` is [`CLAUDE`]; removed when dropped.
pub struct FakeImage {
    pub name: String,
}

impl FakeImage {
    pub fn build(bench: &Bench) -> Result<Self> {
        let dir = tempfile::tempdir_in(bench.scratch.path())?;
        let program = dir.path().join("claude");
        fs::write(&program, CLAUDE)?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        fs::write(
            dir.path().join("Dockerfile"),
            format!("FROM {BASE}\nCOPY --chown=0:0 claude /usr/local/bin/claude\n"),
        )?;
        let name = format!("baton-bench:{}", uuid::Uuid::new_v4().simple());
        let mut build = Command::new("docker");
        build
            .args(["build", "--quiet", "--tag", &name])
            .arg(dir.path());
        run(build.env("DOCKER_BUILDKIT", "0"))
            .context("no image; `baton image build` makes the one it is based on")?;
        Ok(Self { name })
    }
}

impl Drop for FakeImage {
    fn drop(&mut self) {
        let mut remove = Command::new("docker");
        if let Err(error) = run(remove.args(["rmi", "--force", &self.name])) {
            eprintln!("not removed: {error:#}");
        }
    }
}

pub fn connect() -> Result<Docker> {
    Docker::connect_with_local_defaults().context("Docker cannot be reached")
}

/// The container that a sandbox is, as a request to make one more like it.
pub async fn body_of(docker: &Docker, name: &str) -> Result<ContainerCreateBody> {
    let found = docker
        .inspect_container(name, None::<InspectContainerOptions>)
        .await?;
    let mut body = serde_json::to_value(found.config.context("a container without settings")?)?;
    body["HostConfig"] = serde_json::to_value(found.host_config)?;
    Ok(serde_json::from_value(body)?)
}

/// Its process, as the host numbers it.
pub async fn pid_of(docker: &Docker, name: &str) -> Result<u32> {
    let found = docker
        .inspect_container(name, None::<InspectContainerOptions>)
        .await?;
    let pid = found
        .state
        .and_then(|state| state.pid)
        .context("a container without a process")?;
    Ok(u32::try_from(pid)?)
}

/// Milliseconds of one life, [`RawSandboxes::run`].
pub struct Life {
    pub create_ms: f64,
    pub start_ms: f64,
    pub wait_ms: f64,
}

/// Makes and runs sandboxes that do nothing, with the flags of ours; removes all when dropped.
pub struct RawSandboxes<'a> {
    docker: &'a Docker,
    body: ContainerCreateBody,
    label: String,
    run_dir: tempfile::TempDir,
    made: usize,
}

impl<'a> RawSandboxes<'a> {
    /// Like the live sandbox whose directory on the host and `body` those are. They run its agent,
    /// which ends at once when it is given an argument it doesn't know.
    pub fn new(
        bench: &Bench,
        docker: &'a Docker,
        body: ContainerCreateBody,
        sandbox_dir: &Path,
    ) -> Result<Self> {
        let run_dir = tempfile::tempdir_in(bench.scratch.path())?;
        fs::set_permissions(run_dir.path(), fs::Permissions::from_mode(0o755))?;
        fs::hard_link(sandbox_dir.join("agent"), run_dir.path().join("agent"))?;
        let label = uuid::Uuid::new_v4().simple().to_string();
        Ok(Self {
            docker,
            body,
            label,
            run_dir,
            made: 0,
        })
    }

    fn next_body(&mut self) -> Result<(String, ContainerCreateBody)> {
        self.made += 1;
        let name = format!("baton-bench-{}-{}", self.label, self.made);
        let labels = HashMap::from([("baton.instance".to_owned(), self.label.clone())]);
        let mut body = self.body.clone();
        body.labels = Some(labels.clone());
        let entrypoint = body
            .entrypoint
            .as_mut()
            .context("a sandbox without an entrypoint")?;
        entrypoint.push("--nothing".to_owned());
        let host = body
            .host_config
            .as_mut()
            .context("a sandbox without a host's settings")?;
        for (at, mount) in host.mounts.iter_mut().flatten().enumerate() {
            if mount.typ == Some(MountType::BIND) {
                mount.source = Some(self.run_dir.path().to_string_lossy().into_owned());
            } else {
                mount.source = Some(format!("{name}-{at}"));
                let options = mount.volume_options.get_or_insert_default();
                options.labels = Some(labels.clone());
            }
        }
        Ok((name, body))
    }

    /// One life: made, started, waited for. Its removal does not count.
    pub async fn run(&mut self) -> Result<Life> {
        let (name, body) = self.next_body()?;
        let options = CreateContainerOptionsBuilder::new().name(&name).build();
        let begin = Instant::now();
        self.docker.create_container(Some(options), body).await?;
        let created = Instant::now();
        self.docker
            .start_container(&name, None::<StartContainerOptions>)
            .await?;
        let started = Instant::now();
        let options = WaitContainerOptionsBuilder::new()
            .condition("not-running")
            .build();
        let mut exits = Box::pin(self.docker.wait_container(&name, Some(options)));
        // That it ended with a complaint is as it should be.
        match exits.try_next().await {
            Ok(_) | Err(bollard::errors::Error::DockerContainerWaitError { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let ended = Instant::now();
        let options = RemoveContainerOptionsBuilder::new().force(true).build();
        self.docker.remove_container(&name, Some(options)).await?;
        let ms = |from: Instant, to: Instant| (to - from).as_secs_f64() * 1e3;
        Ok(Life {
            create_ms: ms(begin, created),
            start_ms: ms(created, started),
            wait_ms: ms(started, ended),
        })
    }
}

impl Drop for RawSandboxes<'_> {
    fn drop(&mut self) {
        remove_labelled(&format!("baton.instance={}", self.label));
    }
}

/// What Docker says happened to containers with that label since `since`: session, action,
/// milliseconds since the epoch.
pub async fn events(
    docker: &Docker,
    label: &str,
    since: jiff::Timestamp,
) -> Result<Vec<(String, String, f64)>> {
    let filters = HashMap::from([("type", vec!["container"]), ("label", vec![label])]);
    let until = jiff::Timestamp::now();
    let seconds = |at: jiff::Timestamp| format!("{}.{:09}", at.as_second(), at.subsec_nanosecond());
    let options = EventsOptionsBuilder::new()
        .since(&seconds(since))
        .until(&seconds(until))
        .filters(&filters)
        .build();
    let events: Vec<_> = docker.events(Some(options)).try_collect().await?;
    let seen = events.into_iter().filter_map(|event| {
        let session = event.actor?.attributes?.remove("baton.session")?;
        Some((session, event.action?, event.time_nano? as f64 / 1e6))
    });
    Ok(seen.collect())
}
