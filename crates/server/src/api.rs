//! What goes over the wire: requests into operations, what they answer into JSON, errors into
//! status and code. The doors, HTTP and MCP, add only what is theirs.

mod body;
mod error;
mod event;
mod json;
mod landing;
mod operation;
mod reply;
mod view;

pub use body::{BODY_BYTES_MAX, BODY_TIMEOUT, too_large, whole_body};
pub use error::{ApiError, Code, ErrorBody};
pub use event::EventView;
pub use landing::{GateRunView, LandingView, LeftOutView};
pub use operation::{
    DEPENDENCIES_MAX, ListQuery, OUTPUT_LINES_DEFAULT, OUTPUT_LINES_MAX, Operation, TIMEOUT_S_MAX,
    flag_param, list_query, new_message, new_orchestration, new_session, number_param, operation,
    orchestration_id, orchestration_start, output_query, session_id,
};
pub use reply::{
    LIST_BYTES_MAX, RenderedPages, cursor_text, digest, orchestrated, orchestration, output,
    session_created, session_got, session_messaged, session_retried, session_started, session_told,
};
pub use view::{
    Millis, OrchestratedView, OrchestrationView, OutputView, OverlapView, ProjectView, ReportView,
    SessionView,
};
