//! One skill, served as files (SEP-2640).

use rmcp::model::{
    DIRECTORY_MIME_TYPE, ErrorData, ReadResourceDirectoryResult, Resource, ResourceContents, Skill,
    SkillFrontmatter, SkillResource, SkillResources,
};

const NAME: &str = "counting";
const DESCRIPTION: &str = "Counts things one after the other";
const DIRECTORY: &str = "skill://counting";
const NOTES_DIRECTORY: &str = "skill://counting/notes";
const MARKDOWN: &str = "text/markdown";

/// Each file with its text; the first says what the skill is.
const FILES: [(&str, &str); 2] = [
    (
        "skill://counting/SKILL.md",
        "---\nname: counting\ndescription: Counts things one after the other\n---\n\nBegin with one.\n",
    ),
    (
        "skill://counting/notes/zero.md",
        "Nothing is counted as zero.\n",
    ),
];

/// All skills.
pub fn all() -> Vec<Skill> {
    let files = FILES.iter();
    let files = files.map(|(uri, text)| SkillResource::from_bytes(*uri, text.as_bytes()));
    let frontmatter = SkillFrontmatter::new(NAME, DESCRIPTION);
    let resources = SkillResources::Files(files.collect());
    vec![Skill::new(FILES[0].0, frontmatter, resources)]
}

/// The skill at `uri`.
pub fn one(uri: &str) -> Result<Skill, ErrorData> {
    let skill = all().into_iter().find(|skill| skill.uri == uri);
    skill.ok_or_else(|| ErrorData::invalid_params("there is no such skill", None))
}

/// What the list of resources has of it.
pub fn resource() -> Resource {
    Resource::new(FILES[0].0, NAME)
        .with_description(DESCRIPTION)
        .with_mime_type(MARKDOWN)
}

/// A file, if it is one.
pub fn contents(uri: &str) -> Option<ResourceContents> {
    let (_, text) = FILES.iter().find(|(known, _)| *known == uri)?;
    Some(ResourceContents::text(*text, uri).with_mime_type(MARKDOWN))
}

/// What is directly in a directory.
pub fn directory(uri: &str) -> Result<ReadResourceDirectoryResult, ErrorData> {
    let children = match uri {
        DIRECTORY => vec![
            resource(),
            Resource::new(NOTES_DIRECTORY, "notes").with_mime_type(DIRECTORY_MIME_TYPE),
        ],
        NOTES_DIRECTORY => vec![Resource::new(FILES[1].0, "zero").with_mime_type(MARKDOWN)],
        _ => return Err(ErrorData::invalid_params("this is no directory", None)),
    };
    Ok(ReadResourceDirectoryResult::with_all_items(children))
}
