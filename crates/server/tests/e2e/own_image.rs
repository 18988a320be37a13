//! A user's own image: any with git and glibc.

use crate::docker::{docker, try_docker};
use crate::world::World;

/// Takes from the session image all that is ours: the CLI, the user, the directories, the label.
const DOCKERFILE: &str = "\
    FROM claudecode:latest\n\
    USER root\n\
    RUN rm /usr/local/bin/claude && rm -rf /workspace /state && sed -i /agent/d /etc/passwd\n\
    LABEL dev.baton.image= baton.test=e2e\n";

const WRITES_A_FILE: &str = r#"
match = ["Write the note"]

[[turn]]
[[turn.tool]]
name = "Write"
input = { file_path = "{{cwd}}/note.txt", content = "written\n" }

[[turn]]
text = "Wrote the note."
"#;

/// An image that goes at the end of the test.
struct Image(String);

impl Image {
    async fn build() -> Self {
        let name = format!("baton-test-own-image:{}", uuid::Uuid::new_v4().simple());
        let context = tempfile::tempdir().expect("a directory for the build");
        std::fs::write(context.path().join("Dockerfile"), DOCKERFILE).expect("the Dockerfile");
        let context = context.path().display().to_string();
        docker([
            "build",
            "--quiet",
            "--network=none",
            "--tag",
            &name,
            &context,
        ])
        .await;
        Self(name)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let removal = std::process::Command::new("docker")
            .args(["image", "rm", "--force", &self.0])
            .output();
        if let Err(error) = removal {
            eprintln!("{} is left: {error}", self.0);
        }
    }
}

#[tokio::test]
async fn a_foreign_image_runs_with_the_claude_code_of_ours() {
    let image = Image::build().await;
    let lacks_claude = try_docker(["run", "--rm", &image.0, "sh", "-c", "command -v claude"]).await;
    assert!(!lacks_claude.status.success(), "the image has Claude Code");
    let mut world = World::with_scripts([("write", WRITES_A_FILE)]).await;
    let remote = world
        .remote("owner/repo", &[("README.md", "Nothing yet.\n")])
        .await;
    world.set("CLAUDE_CONTAINER_IMAGE", &image.0);
    world.start_server().await;
    let session = world.run("Write the note", &[]).await;
    let session = world.completed(&session).await;
    let branch = crate::world::text(&session["result"]["branch"]);
    assert_eq!(
        remote.file(&branch, "note.txt").await.as_deref(),
        Some("written\n")
    );
    // The container goes first, then its image.
    world.no_container().await;
}
