//! What is the same each time, read from `catalogue.json`.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use rmcp::model::{
    CallToolResult, InputRequest, InputRequests, Prompt, Resource, ResourceContents,
    ResourceTemplate, Tool,
};
use serde::Deserialize;

/// See the module.
pub static CATALOGUE: LazyLock<Catalogue> = LazyLock::new(|| {
    serde_json::from_str(include_str!("catalogue.json")).expect("the catalogue is valid")
});

/// The lists, and what is behind their names.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Catalogue {
    pub tools: Vec<Tool>,
    /// Results of the tools that always answer the same, by name.
    pub answers: BTreeMap<String, CallToolResult>,
    pub resources: Vec<Resource>,
    pub contents: BTreeMap<String, ResourceContents>,
    pub resource_templates: Vec<ResourceTemplate>,
    pub prompts: Vec<Prompt>,
    /// What callers are asked, by key.
    pub questions: BTreeMap<String, InputRequest>,
}

impl Catalogue {
    pub fn question(&self, key: &str) -> InputRequest {
        self.questions[key].clone()
    }

    pub fn questions(&self, keys: &[&str]) -> InputRequests {
        keys.iter()
            .map(|key| ((*key).to_owned(), self.question(key)))
            .collect()
    }
}
