//! The volumes of a sandbox: whose they are, who owns their roots, and when they go.

use std::collections::{HashMap, HashSet};

use baton_domain::{Attempt, SandboxId, SessionId};
use bollard::body_full;
use bollard::models::{ContainerCreateBody, HostConfig, Volume};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, ListVolumesOptionsBuilder, RemoveVolumeOptions,
    UploadToContainerOptionsBuilder,
};
use futures::future::try_join_all;
use jiff::Timestamp;

use super::body::{
    AGENT_UID, LABEL_INSTANCE, LABEL_SANDBOX, state_name, volume_mounts, volume_names,
    workspace_name,
};
use super::docker::DockerRuntime;
use super::refusal::{failed, is_status};
use super::{RUN_MOUNT, RuntimeError, SandboxSpec};

/// Checks that the state of an attempt that is to be gone on with is there and the session's own.
/// Before the sandbox is made: Docker would make the volume, empty.
///
/// # Errors
/// [`RuntimeError::StateGone`], [`RuntimeError::NameTaken`].
pub(super) async fn check_earlier(
    docker: &DockerRuntime,
    session: SessionId,
    attempt: Attempt,
) -> Result<(), RuntimeError> {
    const STEP: &str = "inspect the volume";
    let name = state_name(session, attempt);
    let volume = match docker.client(STEP)?.inspect_volume(&name).await {
        Err(error) if is_status(&error, 404) => {
            return Err(RuntimeError::StateGone { session, attempt });
        }
        found => found.map_err(failed(STEP, &name))?,
    };
    match docker.owner(&volume.labels) == Some((session, attempt)) {
        true => Ok(()),
        false => Err(docker.name_taken(&name, &session.to_string(), &volume.labels)),
    }
}

/// Checks that the volumes of a sandbox that never ran are its own, and on a `foreign_image`
/// gives them the right owner.
///
/// # Errors
/// [`RuntimeError::NameTaken`] when Docker mounted an older volume of that name, which holds
/// somebody else's work. The sandbox is removed then, so that the volume can be.
pub(super) async fn make_ready(
    docker: &DockerRuntime,
    spec: &SandboxSpec,
    id: &SandboxId,
    foreign_image: bool,
) -> Result<(), RuntimeError> {
    const STEP: &str = "inspect the volumes of";
    let client = docker.client(STEP)?;
    let names = volume_names(spec.session, spec.attempt);
    let volumes = try_join_all(names.iter().map(|name| client.inspect_volume(name)))
        .await
        .map_err(failed(STEP, &id.0))?;
    for volume in volumes {
        if docker.owner(&volume.labels) != Some((spec.session, spec.attempt)) {
            docker.delete(&id.0).await?;
            let session = spec.session.to_string();
            return Err(docker.name_taken(&volume.name, &session, &volume.labels));
        }
    }
    if let Some(earlier) = spec.earlier
        && let Err(error) = check_earlier(docker, spec.session, earlier).await
    {
        if !error.is_unavailable() {
            docker.delete(&id.0).await?;
        }
        return Err(error);
    }
    if foreign_image {
        own_roots(docker, spec, id).await?;
    }
    Ok(())
}

/// Makes the session's user the owner of the roots of its fresh volumes.
///
/// A volume takes over the owner of the image's directory at that place; an image not made for
/// us has no such directory, and root's the volume is. The Engine API has no "change owner", and
/// an archive cannot name the directory it is unpacked into. But unpacked one level higher, it
/// names the mount points. That level is the root file system, read-only in the sandbox; so this
/// is done through a second container, never started, whose root is not.
async fn own_roots(
    docker: &DockerRuntime,
    spec: &SandboxSpec,
    id: &SandboxId,
) -> Result<(), RuntimeError> {
    const STEP: &str = "set up the volumes of";
    let primer = primer_name(id);
    docker.delete(&primer).await?; // left by a crash
    let client = docker.client(STEP)?;
    let options = CreateContainerOptionsBuilder::new().name(&primer).build();
    client
        .create_container(Some(options), primer_body(spec, docker))
        .await
        .map_err(failed(STEP, &id.0))?;
    let options = UploadToContainerOptionsBuilder::new().path("/").build();
    let uploaded = client
        .upload_to_container(
            &primer,
            Some(options),
            body_full(archive(&["workspace/", "state/"]).into()),
        )
        .await
        .map_err(failed(STEP, &id.0));
    docker.delete(&primer).await?;
    uploaded
}

/// Deletes what a crash in the middle of setting up volumes left; usually nothing.
pub(super) async fn delete_primer(
    docker: &DockerRuntime,
    id: &SandboxId,
) -> Result<(), RuntimeError> {
    docker.delete(&primer_name(id)).await.map(|_| ())
}

fn primer_name(id: &SandboxId) -> String {
    format!("{id}-volumes")
}

/// Carries our instance's label, and no session's: it is no sandbox.
fn primer_body(spec: &SandboxSpec, docker: &DockerRuntime) -> ContainerCreateBody {
    ContainerCreateBody {
        image: Some(spec.image.clone()),
        // Never runs; but an image without any command is refused.
        entrypoint: Some(vec![format!("{RUN_MOUNT}/agent")]),
        labels: Some(HashMap::from([(
            LABEL_INSTANCE.to_owned(),
            docker.instance.clone(),
        )])),
        host_config: Some(HostConfig {
            network_mode: Some("none".to_owned()),
            mounts: Some(volume_mounts(spec, &docker.instance)),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    }
}

/// Removes the volumes of a sandbox; none left is a success.
pub(super) async fn remove_of(docker: &DockerRuntime, id: &SandboxId) -> Result<(), RuntimeError> {
    for volume in list_of(docker, id).await? {
        remove(docker, &volume.name).await?;
    }
    Ok(())
}

/// Removes the workspace of a sandbox; gone already is a success.
pub(super) async fn remove_workspace_of(
    docker: &DockerRuntime,
    id: &SandboxId,
) -> Result<(), RuntimeError> {
    for volume in list_of(docker, id).await? {
        let owner = docker.owner(&volume.labels);
        if owner.is_some_and(|(session, attempt)| volume.name == workspace_name(session, attempt)) {
            remove(docker, &volume.name).await?;
        }
    }
    Ok(())
}

/// Found by label: the names need the whole session id, and the container may be long gone.
async fn list_of(docker: &DockerRuntime, id: &SandboxId) -> Result<Vec<Volume>, RuntimeError> {
    let label = format!("{LABEL_SANDBOX}={id}");
    list(docker, HashMap::from([("label", vec![label])])).await
}

/// Removes our volumes made before `before` that no container mounts and that are not of one of
/// the `spared` sessions; says how many.
///
/// The time is Docker's: newer versions give when the volume was made, older ones when an entry
/// of its root last changed, which is later.
pub(super) async fn remove_unheld(
    docker: &DockerRuntime,
    before: Timestamp,
    spared: &HashSet<SessionId>,
) -> Result<usize, RuntimeError> {
    let filters = HashMap::from([("dangling", vec!["true".to_owned()])]);
    let mut removed = 0;
    for volume in list(docker, filters).await? {
        let owner = docker.owner(&volume.labels);
        if owner.is_some_and(|(session, _)| spared.contains(&session)) {
            continue;
        }
        let created_at = volume.created_at.as_deref();
        let created_at: Option<Timestamp> = created_at.and_then(|text| text.parse().ok());
        if created_at.is_some_and(|at| at < before) && remove(docker, &volume.name).await? {
            removed += 1;
        }
    }
    Ok(removed)
}

/// Our volumes among those that `filters` lets through.
async fn list(
    docker: &DockerRuntime,
    mut filters: HashMap<&'static str, Vec<String>>,
) -> Result<Vec<Volume>, RuntimeError> {
    const STEP: &str = "list";
    filters.entry("label").or_default().push(docker.our_label());
    let options = ListVolumesOptionsBuilder::new().filters(&filters).build();
    let answer = docker
        .client(STEP)?
        .list_volumes(Some(options))
        .await
        .map_err(failed(STEP, "volumes"))?;
    Ok(answer.volumes.unwrap_or_default())
}

/// `false`: it was gone already.
async fn remove(docker: &DockerRuntime, name: &str) -> Result<bool, RuntimeError> {
    const STEP: &str = "remove the volume";
    let removed = docker
        .client(STEP)?
        .remove_volume(name, None::<RemoveVolumeOptions>)
        .await;
    match removed {
        Ok(()) => Ok(true),
        Err(error) if is_status(&error, 404) => Ok(false),
        Err(error) => Err(failed(STEP, name)(error)),
    }
}

const TAR_BLOCK: usize = 512;

/// A tar archive of directories, each with our user as its owner and mode 0755.
fn archive(directories: &[&str]) -> Vec<u8> {
    let mut archive: Vec<u8> = directories.iter().flat_map(|it| tar_entry(it)).collect();
    archive.resize(archive.len() + 2 * TAR_BLOCK, 0); // the end mark
    archive
}

/// One header of the POSIX `ustar` format; a directory has no more than that.
fn tar_entry(directory: &str) -> [u8; TAR_BLOCK] {
    let mut block = [0; TAR_BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    let owner = format!("{AGENT_UID:07o}\0");
    put(0, directory.as_bytes());
    put(100, b"0000755\0");
    put(108, owner.as_bytes());
    put(116, owner.as_bytes());
    put(124, b"00000000000\0"); // size
    put(136, b"00000000000\0"); // time of change
    put(148, b"        "); // the checksum counts itself as blanks
    put(156, b"5"); // a directory
    put(257, b"ustar\x0000");
    let sum: u32 = block.iter().copied().map(u32::from).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn tar_reads_the_archive() {
        let mut tar = Command::new("tar")
            .args(["--list", "--verbose", "--numeric-owner"])
            .env("TZ", "UTC")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("tar is installed");
        let archive = archive(&["workspace/", "state/"]);
        let mut stdin = tar.stdin.take().expect("it was asked for");
        stdin.write_all(&archive).expect("tar reads all of it");
        drop(stdin);
        let output = tar.wait_with_output().expect("tar ends");
        let listing = String::from_utf8_lossy(&output.stdout);
        let words: Vec<Vec<&str>> = listing
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(words.len(), 2, "{listing}");
        for (line, name) in words.iter().zip(["workspace/", "state/"]) {
            assert_eq!(line[..3], ["drwxr-xr-x", "10001/10001", "0"]);
            assert_eq!(line.last(), Some(&name));
        }
    }
}
