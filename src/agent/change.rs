//! What the control socket offers beside `/status`: changes of the outbox, a step at a time. Not on the HTTP port: nothing
//! that changes state is reached over the network.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use serde::Serialize;

use crate::outbox::{Change, ChangeError, Outbox, Step};

/// Routes for the control socket only.
pub(super) fn router(outbox: Outbox) -> Router {
    Router::new()
        .route("/outbox/purge", post(|State(outbox), Json(change)| step(outbox, change, Outbox::purge)))
        .route("/outbox/replay", post(|State(outbox), Json(change)| step(outbox, change, Outbox::replay)))
        .with_state(outbox)
}

async fn step<R: Serialize + Send + 'static>(
    outbox: Outbox,
    change: Change,
    make: fn(&Outbox, &Change) -> Result<Step<R>, ChangeError>,
) -> Response {
    // The writer answers when it has time: after a sync that is under way.
    match tokio::task::spawn_blocking(move || make(&outbox, &change)).await {
        Ok(Ok(step)) => Json(step).into_response(),
        Ok(Err(error)) => {
            let status = match &error {
                ChangeError::Selection(_) => StatusCode::BAD_REQUEST,
                ChangeError::Refused(_) => StatusCode::CONFLICT,
                ChangeError::Closed => StatusCode::SERVICE_UNAVAILABLE,
            };
            (status, format!("{error}\n")).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}
