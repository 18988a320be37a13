//! What a sandbox is made of, as Docker is told it. Pure, and pinned by snapshots: limits,
//! mounts and environment are what keeps a session in, so a change of them shows as a diff.

use std::collections::HashMap;

use baton_domain::{Attempt, SessionId};
use bollard::models::{
    ContainerCreateBody, HealthConfig, HostConfig, HostConfigLogConfig, Mount, MountType,
    MountVolumeOptions, ResourcesUlimits, RestartPolicy, RestartPolicyNameEnum,
};

use super::{RUN_MOUNT, SandboxSpec};

/// Which instance of ours made it; nothing without this label, with our value, is touched.
pub(super) const LABEL_INSTANCE: &str = "baton.instance";
/// Whose it is.
pub(super) const LABEL_SESSION: &str = "baton.session";
/// Which attempt of that session.
pub(super) const LABEL_ATTEMPT: &str = "baton.attempt";
/// On volumes: the sandbox they belong to, so that they are found when it is gone.
pub(super) const LABEL_SANDBOX: &str = "baton.sandbox";

/// The user and group inside, numbers because a user's own image has no name for them.
pub(super) const AGENT_UID: u32 = 10_001;
const WORKSPACE: &str = "/workspace";
const STATE: &str = "/state";
const EARLIER: &str = "/earlier";
const HOME: &str = "/home/agent";
/// Caches and dotfiles of one session; it counts against the sandbox's memory.
const HOME_BYTES: u64 = 256 << 20;
/// Above the server's, so that a host without memory kills a sandbox first.
const OOM_SCORE_ADJ: i64 = 500;
const NANOS_PER_CPU: f64 = 1e9;

/// The names of a sandbox's two volumes, workspace first.
pub(super) fn volume_names(session: SessionId, attempt: Attempt) -> [String; 2] {
    [
        workspace_name(session, attempt),
        state_name(session, attempt),
    ]
}

/// The name of the volume with an attempt's code.
pub(super) fn workspace_name(session: SessionId, attempt: Attempt) -> String {
    format!("baton-{session}-{attempt}-workspace")
}

/// The name of the volume with an attempt's conversation.
pub(super) fn state_name(session: SessionId, attempt: Attempt) -> String {
    format!("baton-{session}-{attempt}-state")
}

/// The labels of everything that belongs to one attempt.
pub(super) fn labels(spec: &SandboxSpec, instance: &str) -> HashMap<String, String> {
    [
        (LABEL_INSTANCE, instance.to_owned()),
        (LABEL_SESSION, spec.session.to_string()),
        (LABEL_ATTEMPT, spec.attempt.to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

/// The request that makes the sandbox of `spec`.
pub(super) fn container_body(spec: &SandboxSpec, instance: &str) -> ContainerCreateBody {
    ContainerCreateBody {
        image: Some(spec.image.clone()),
        entrypoint: Some(vec![format!("{RUN_MOUNT}/agent")]),
        // PATH comes from the image. The job comes down the socket, never through here.
        env: Some(vec![format!("HOME={HOME}")]),
        user: Some(format!("{AGENT_UID}:{AGENT_UID}")),
        working_dir: Some(WORKSPACE.to_owned()),
        hostname: Some("sandbox".to_owned()),
        labels: Some(labels(spec, instance)),
        stop_signal: Some("SIGTERM".to_owned()),
        // A foreign image may bring its own check: a process nobody asked for.
        healthcheck: Some(HealthConfig {
            test: Some(vec!["NONE".to_owned()]),
            ..HealthConfig::default()
        }),
        host_config: Some(host_config(spec, instance)),
        ..ContainerCreateBody::default()
    }
}

fn host_config(spec: &SandboxSpec, instance: &str) -> HostConfig {
    let limits = &spec.limits;
    let memory = i64::try_from(limits.memory_bytes).unwrap_or(i64::MAX);
    HostConfig {
        network_mode: Some("none".to_owned()),
        readonly_rootfs: Some(true),
        cap_drop: Some(vec!["ALL".to_owned()]),
        // No `seccomp=`: the daemon's default profile stays in force.
        security_opt: Some(vec!["no-new-privileges:true".to_owned()]),
        privileged: Some(false),
        ipc_mode: Some("private".to_owned()),
        tmpfs: Some(tmpfs(limits.tmp_bytes)),
        mounts: Some(mounts(spec, instance)),
        // The agent reaps; a second init would hide its exit code.
        init: Some(false),
        restart_policy: Some(RestartPolicy {
            name: Some(RestartPolicyNameEnum::NO),
            maximum_retry_count: None,
        }),
        // The exit must still be there to read after a restart of ours.
        auto_remove: Some(false),
        memory: Some(memory),
        memory_swap: Some(memory),
        nano_cpus: Some(nano_cpus(limits.cpus)),
        pids_limit: Some(limits.pids),
        ulimits: Some(vec![
            ulimit("nofile", limits.nofile),
            ulimit("core", 0), // a core file would hold the session's whole memory
        ]),
        oom_score_adj: Some(OOM_SCORE_ADJ),
        // For debugging only: outputs travel over the socket.
        log_config: Some(HostConfigLogConfig {
            typ: Some("json-file".to_owned()),
            config: Some(
                [("max-size", "16m"), ("max-file", "2")]
                    .map(|(name, value)| (name.to_owned(), value.to_owned()))
                    .into(),
            ),
        }),
        runtime: spec.runtime.clone(),
        ..HostConfig::default()
    }
}

/// The writable memory. Both may run programs, since build tools write and run theirs there;
/// `noexec` would stop nobody who can also write to the workspace.
fn tmpfs(tmp_bytes: u64) -> HashMap<String, String> {
    let common = "rw,exec,nosuid,nodev";
    [
        ("/tmp", format!("{common},size={tmp_bytes},mode=1777")),
        (
            HOME,
            format!("{common},size={HOME_BYTES},uid={AGENT_UID},gid={AGENT_UID},mode=0700"),
        ),
    ]
    .map(|(path, options)| (path.to_owned(), options))
    .into()
}

fn mounts(spec: &SandboxSpec, instance: &str) -> Vec<Mount> {
    let mut mounts = volume_mounts(spec, instance);
    mounts.extend(
        spec.earlier
            .map(|earlier| earlier_mount(spec, earlier, instance)),
    );
    mounts.push(Mount {
        typ: Some(MountType::BIND),
        source: Some(spec.run_dir.to_string_lossy().into_owned()),
        target: Some(RUN_MOUNT.to_owned()),
        read_only: Some(true),
        ..Mount::default()
    });
    mounts
}

/// The state of an earlier attempt. It was there when the sandbox was asked for; should it go in
/// that moment, what Docker makes in its place is empty and has our labels, so that it goes too.
fn earlier_mount(spec: &SandboxSpec, earlier: Attempt, instance: &str) -> Mount {
    let of_earlier = SandboxSpec {
        attempt: earlier,
        ..spec.clone()
    };
    Mount {
        typ: Some(MountType::VOLUME),
        source: Some(state_name(spec.session, earlier)),
        target: Some(EARLIER.to_owned()),
        read_only: Some(true),
        volume_options: Some(MountVolumeOptions {
            labels: Some(volume_labels(&of_earlier, instance)),
            // Nothing of the image's is to get into it.
            no_copy: Some(true),
            ..MountVolumeOptions::default()
        }),
        ..Mount::default()
    }
}

fn volume_labels(spec: &SandboxSpec, instance: &str) -> HashMap<String, String> {
    let mut labels = labels(spec, instance);
    labels.insert(LABEL_SANDBOX.to_owned(), spec.id().0);
    labels
}

/// The two volumes at their places; Docker makes what is missing, with the labels.
pub(super) fn volume_mounts(spec: &SandboxSpec, instance: &str) -> Vec<Mount> {
    let labels = volume_labels(spec, instance);
    volume_names(spec.session, spec.attempt)
        .into_iter()
        .zip([WORKSPACE, STATE])
        .map(|(name, target)| Mount {
            typ: Some(MountType::VOLUME),
            source: Some(name),
            target: Some(target.to_owned()),
            volume_options: Some(MountVolumeOptions {
                labels: Some(labels.clone()),
                ..MountVolumeOptions::default()
            }),
            ..Mount::default()
        })
        .collect()
}

fn ulimit(name: &str, limit: i64) -> ResourcesUlimits {
    ResourcesUlimits {
        name: Some(name.to_owned()),
        soft: Some(limit),
        hard: Some(limit),
    }
}

/// Docker's unit. A cast from float saturates, so no configured number wraps around.
fn nano_cpus(cpus: f64) -> i64 {
    (cpus * NANOS_PER_CPU).round() as i64
}

#[cfg(test)]
mod tests {
    use baton_domain::Kind;
    use expect_test::{Expect, expect};

    use super::*;
    use crate::runtime::Limits;

    fn spec() -> SandboxSpec {
        SandboxSpec {
            session: "0192d1f6-0000-7000-8000-00abcdef0001"
                .parse()
                .expect("the test's id is a UUID"),
            attempt: Attempt(2),
            kind: Kind::Implementation,
            image: "claudecode:latest".to_owned(),
            run_dir: "/data/run/0192d1f6-2".into(),
            limits: Limits {
                memory_bytes: 4 << 30,
                cpus: 1.5,
                pids: 512,
                nofile: 16_384,
                tmp_bytes: 512 << 20,
            },
            runtime: None,
            earlier: None,
        }
    }

    #[track_caller]
    fn check(spec: &SandboxSpec, expected: Expect) {
        // By way of `Value`, which sorts the maps.
        let body = serde_json::to_value(container_body(spec, "here")).expect("a body is JSON");
        let text = serde_json::to_string_pretty(&body).expect("a value is JSON");
        expected.assert_eq(&text);
    }

    #[test]
    fn a_sandbox_is_sealed() {
        check(
            &spec(),
            expect![[r#"
            {
              "Entrypoint": [
                "/run/baton/agent"
              ],
              "Env": [
                "HOME=/home/agent"
              ],
              "Healthcheck": {
                "Test": [
                  "NONE"
                ]
              },
              "HostConfig": {
                "AutoRemove": false,
                "CapDrop": [
                  "ALL"
                ],
                "Init": false,
                "IpcMode": "private",
                "LogConfig": {
                  "Config": {
                    "max-file": "2",
                    "max-size": "16m"
                  },
                  "Type": "json-file"
                },
                "Memory": 4294967296,
                "MemorySwap": 4294967296,
                "Mounts": [
                  {
                    "Source": "baton-0192d1f6-0000-7000-8000-00abcdef0001-2-workspace",
                    "Target": "/workspace",
                    "Type": "volume",
                    "VolumeOptions": {
                      "Labels": {
                        "baton.attempt": "2",
                        "baton.instance": "here",
                        "baton.sandbox": "claude-implementation-00abcdef0001-2",
                        "baton.session": "0192d1f6-0000-7000-8000-00abcdef0001"
                      }
                    }
                  },
                  {
                    "Source": "baton-0192d1f6-0000-7000-8000-00abcdef0001-2-state",
                    "Target": "/state",
                    "Type": "volume",
                    "VolumeOptions": {
                      "Labels": {
                        "baton.attempt": "2",
                        "baton.instance": "here",
                        "baton.sandbox": "claude-implementation-00abcdef0001-2",
                        "baton.session": "0192d1f6-0000-7000-8000-00abcdef0001"
                      }
                    }
                  },
                  {
                    "ReadOnly": true,
                    "Source": "/data/run/0192d1f6-2",
                    "Target": "/run/baton",
                    "Type": "bind"
                  }
                ],
                "NanoCpus": 1500000000,
                "NetworkMode": "none",
                "OomScoreAdj": 500,
                "PidsLimit": 512,
                "Privileged": false,
                "ReadonlyRootfs": true,
                "RestartPolicy": {
                  "Name": "no"
                },
                "SecurityOpt": [
                  "no-new-privileges:true"
                ],
                "Tmpfs": {
                  "/home/agent": "rw,exec,nosuid,nodev,size=268435456,uid=10001,gid=10001,mode=0700",
                  "/tmp": "rw,exec,nosuid,nodev,size=536870912,mode=1777"
                },
                "Ulimits": [
                  {
                    "Hard": 16384,
                    "Name": "nofile",
                    "Soft": 16384
                  },
                  {
                    "Hard": 0,
                    "Name": "core",
                    "Soft": 0
                  }
                ]
              },
              "Hostname": "sandbox",
              "Image": "claudecode:latest",
              "Labels": {
                "baton.attempt": "2",
                "baton.instance": "here",
                "baton.session": "0192d1f6-0000-7000-8000-00abcdef0001"
              },
              "StopSignal": "SIGTERM",
              "User": "10001:10001",
              "WorkingDir": "/workspace"
            }"#]],
        );
    }

    #[test]
    fn another_oci_runtime_is_the_only_difference() {
        let with = SandboxSpec {
            runtime: Some("runsc".to_owned()),
            ..spec()
        };
        let mut body = container_body(&with, "here");
        let host = body.host_config.as_mut().expect("a sandbox has one");
        assert_eq!(host.runtime.take().as_deref(), Some("runsc"));
        assert_eq!(body, container_body(&spec(), "here"));
    }

    #[test]
    fn who_goes_on_reads_the_earlier_state_and_that_is_the_only_difference() {
        let with = SandboxSpec {
            earlier: Some(Attempt(1)),
            ..spec()
        };
        let mut body = container_body(&with, "here");
        let host = body.host_config.as_mut().expect("a sandbox has one");
        let mounts = host.mounts.as_mut().expect("a sandbox has some");
        let mount = mounts.remove(2);
        assert_eq!(body, container_body(&spec(), "here"));
        let mount = serde_json::to_value(mount).expect("a mount is JSON");
        expect![[r#"
            {
              "ReadOnly": true,
              "Source": "baton-0192d1f6-0000-7000-8000-00abcdef0001-1-state",
              "Target": "/earlier",
              "Type": "volume",
              "VolumeOptions": {
                "Labels": {
                  "baton.attempt": "1",
                  "baton.instance": "here",
                  "baton.sandbox": "claude-implementation-00abcdef0001",
                  "baton.session": "0192d1f6-0000-7000-8000-00abcdef0001"
                },
                "NoCopy": true
              }
            }"#]]
        .assert_eq(&serde_json::to_string_pretty(&mount).expect("a value is JSON"));
    }

    #[test]
    fn absurd_limits_saturate() {
        assert_eq!(nano_cpus(0.25), 250_000_000);
        assert_eq!(nano_cpus(f64::MAX), i64::MAX);
        let mut spec = spec();
        spec.limits.memory_bytes = u64::MAX;
        let host = container_body(&spec, "here").host_config;
        assert_eq!(host.and_then(|host| host.memory), Some(i64::MAX));
    }
}
