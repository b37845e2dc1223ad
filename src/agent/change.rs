//! What the control socket offers beside `/status`: changes of the outbox, a step at a time. Not on the HTTP port: nothing
//! that changes state is reached over the network.

use std::sync::{Arc, Weak};

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use serde::Serialize;
use tokio::sync::Semaphore;

use crate::outbox::{Change, ChangeError, Outbox, Step};

/// Changes at once. Each holds a thread, and the writer makes one at a time.
const AT_ONCE: usize = 1;

#[derive(Debug, Clone)]
struct Changes {
    outbox: Outbox,
    permits: Arc<Semaphore>,
}

/// Routes for the control socket only.
pub(super) fn router(outbox: Outbox) -> Router {
    let changes = Changes { outbox, permits: Arc::new(Semaphore::new(AT_ONCE)) };
    Router::new()
        .route("/outbox/purge", post(|State(changes), Json(change)| step(changes, change, Outbox::purge_for)))
        .route("/outbox/replay", post(|State(changes), Json(change)| step(changes, change, Outbox::replay_for)))
        .with_state(changes)
}

async fn step<R: Serialize + Send + 'static>(
    Changes { outbox, permits }: Changes,
    change: Change,
    make: impl FnOnce(&Outbox, &Weak<()>, &Change) -> Result<Step<R>, ChangeError> + Send + 'static,
) -> Response {
    let Ok(permit) = permits.try_acquire_owned() else {
        let text = "another change of the outbox is under way: try again in a moment\n";
        return (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    };
    // Dropped with this future when the client goes away: then the writer leaves out what it has not begun.
    let asker = Arc::new(());
    let watched = Arc::downgrade(&asker);
    // The writer answers when it has time: after a sync that is under way.
    let made = tokio::task::spawn_blocking(move || {
        let made = make(&outbox, &watched, &change);
        drop(permit);
        made
    });
    let answer = match made.await {
        Ok(Ok(step)) => Json(step).into_response(),
        Ok(Err(error)) => {
            let status = match &error {
                ChangeError::Selection(_) => StatusCode::BAD_REQUEST,
                ChangeError::Refused(_) => StatusCode::CONFLICT,
                ChangeError::Closed | ChangeError::Unwanted => StatusCode::SERVICE_UNAVAILABLE,
            };
            (status, format!("{error}\n")).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    };
    drop(asker);
    answer
}
