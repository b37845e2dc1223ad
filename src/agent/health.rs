//! What the daemon tells about itself: `/healthz`, `/readyz`, `/metrics`, `/status`, over HTTP and the control socket.
//!
//! Nothing here changes state. What only the control socket offers is in `look.rs` and `change.rs`; who may come in, and
//! when, in `doors.rs`.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::sources::Sources;
use crate::config;
use crate::delivery::DeliveryHandle;
use crate::metrics::Metrics;
use crate::outbox::Outbox;
use crate::progress::Progress;
use crate::status::{AgentStatus, Status};
use crate::{clock, status};

impl Inner {
    /// Gauges that the outbox sets only when it writes are as of now when somebody looks.
    fn refresh(&self) {
        let (gauges, now) = (&self.metrics.outbox, self.outbox.status());
        gauges.records.set(i64::try_from(now.records).unwrap_or(i64::MAX));
        gauges.bytes.set(i64::try_from(now.bytes).unwrap_or(i64::MAX));
        gauges.oldest_age_seconds.set(now.oldest_age_seconds);
    }
}

/// The view on all stages. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Health {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    agent_id: String,
    state_dir_id: Option<String>,
    started_at: String,
    outbox: Outbox,
    delivery: Arc<DeliveryHandle>,
    sources: Sources,
    metrics: Metrics,
}

impl Health {
    /// Over these stages.
    pub fn new(
        agent: &config::Agent,
        outbox: Outbox,
        delivery: Arc<DeliveryHandle>,
        sources: Sources,
        metrics: Metrics,
    ) -> Self {
        let started_at = clock::rfc3339(clock::now().wall_ns);
        let agent_id = agent.id.clone();
        // The directory whose lock we hold, also if another one gets its name later.
        let state_dir_id = status::directory_id(&agent.state_dir)
            .map_err(|error| log::warn!("cannot look at {}: {error}", agent.state_dir.display()))
            .ok();
        Self { inner: Arc::new(Inner { agent_id, state_dir_id, started_at, outbox, delivery, sources, metrics }) }
    }

    /// All of `/status`.
    pub fn status(&self) -> Status {
        let inner = &self.inner;
        let delivery = inner.delivery.status();
        let mut sources = inner.sources.status();
        inner.outbox.fill_in(&mut sources);
        Status {
            agent: AgentStatus {
                id: inner.agent_id.clone(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                incarnation: inner.outbox.identity().incarnation.to_hex(),
                started_at: inner.started_at.clone(),
                guarantee: delivery.guarantee.clone(),
                state_dir_id: inner.state_dir_id.clone(),
            },
            outbox: inner.outbox.status(),
            delivery,
            sources,
        }
    }

    /// One line for `systemctl status`.
    pub fn summary(&self) -> String {
        status::summary(&self.status())
    }

    /// Loops that have been silent for longer than they may: name, phase and time.
    pub fn stalled(&self) -> Vec<String> {
        let inner = &self.inner;
        let loops: Vec<Progress> =
            [inner.outbox.progress(), inner.delivery.progress()].into_iter().chain(inner.sources.progress()).collect();
        let views = loops.iter().map(Progress::view).filter(|view| view.stalled);
        views.map(|view| format!("{} ({})", view.name, view.phase)).collect()
    }

    /// Why the process cannot do its work; empty if it can.
    fn ailments(&self) -> Vec<String> {
        let mut ailments: Vec<_> = self.stalled().iter().map(|name| format!("{name} stands still")).collect();
        let state = self.inner.outbox.status().state;
        if state.starts_with("failing") {
            ailments.push(format!("outbox {state}"));
        }
        ailments
    }

    /// The outbox, for those who look into it or change it.
    pub(super) fn outbox(&self) -> &Outbox {
        &self.inner.outbox
    }

    fn not_ready(&self) -> Vec<String> {
        let down = |state: &str| !matches!(state, "up" | "held");
        let sources = self.inner.sources.status();
        sources
            .iter()
            .filter(|(_, s)| down(&s.state))
            .map(|(name, s)| format!("source {name} is {}", s.state))
            .collect()
    }
}

/// What anybody may ask.
pub(super) fn router(health: Health) -> Router {
    Router::new()
        .route("/healthz", get(|State(health): State<Health>| async move { verdict(&health.ailments()) }))
        .route("/readyz", get(|State(health): State<Health>| async move { verdict(&health.not_ready()) }))
        .route("/status", get(|State(health): State<Health>| async move { axum::Json(health.status()) }))
        .route("/metrics", get(|State(health): State<Health>| async move { metrics(&health) }))
        .route("/", get(|State(health): State<Health>| async move { status::table(&health.status()) }))
        .with_state(health)
}

fn verdict(reasons: &[String]) -> Response {
    if reasons.is_empty() {
        return (StatusCode::OK, "ok\n").into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n").into_response()
}

fn metrics(health: &Health) -> Response {
    const TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    health.inner.refresh();
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &health.inner.metrics.registry) {
        Ok(()) => ([(header::CONTENT_TYPE, TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
