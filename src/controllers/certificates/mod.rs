//! Answers certificate signing requests: approves those of nodes, signs what is approved, deletes what is done.
//! Observes and applies; what to do is decided in `approve`, `sign` and `clean`.

mod approve;
mod clean;
mod sign;
pub mod tokens;

use super::Tools;
use super::runner::{Reconcile, Source};
use crate::api::object::{Object, ObjectExt};
use crate::api::status::{Result, Status};
use crate::client::{CERTIFICATESIGNINGREQUESTS, DeleteOptions, Informer, NODES, SECRETS};
use crate::pki::Pki;
use crate::pki::bootstrap::{self, BootstrapToken};
use crate::pki::node_key::{self, NodeKey};
use crate::pki::request::SigningRequest;
use approve::{Decision, Facts, Known};
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// Requests longer than this are answered by nobody; their spec is bounded by the API already.
const CONDITIONS_LIMIT: usize = 64;

pub struct Controller {
    tools: Tools,
    pki: Pki,
    requests: Informer,
}

impl Controller {
    pub fn new(tools: &Tools, pki: &Pki) -> (Arc<Self>, Vec<Source>) {
        let requests = tools.informers.all(CERTIFICATESIGNINGREQUESTS);
        let sources = vec![Source::own(&requests)];
        (Arc::new(Self { tools: tools.clone(), pki: pki.clone(), requests }), sources)
    }

    async fn sync(&self, key: &str) -> Result<Option<Duration>> {
        let Some(item) = self.requests.by_key(key) else { return Ok(None) };
        let request = item.object()?;
        if request.deletion_timestamp().is_some() {
            return Ok(None);
        }
        let now = self.tools.clock.now();
        match clean::due(&request) {
            Some(at) if at <= now => return self.delete(&request).await.map(|()| None),
            due => {
                if !self.approve(&request).await? {
                    self.sign(&request).await?;
                }
                Ok(due.map(|at| Duration::try_from(at - now).unwrap_or_default()))
            }
        }
    }

    async fn delete(&self, request: &Object) -> Result<()> {
        tracing::info!(request = request.name(), "certificate signing request is done with; deleting it");
        let options = DeleteOptions { uid: Some(request.uid().to_owned()), ..DeleteOptions::default() };
        match self.tools.client.delete(CERTIFICATESIGNINGREQUESTS, "", request.name(), &options).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    /// Whether it changed the request, which then comes back.
    async fn approve(&self, request: &Object) -> Result<bool> {
        if !approve::is_ours(request) {
            return Ok(false);
        }
        let parsed = parse(request);
        let node = parsed.as_ref().ok().and_then(|parsed| node_key::node_of_user(&parsed.common_name));
        let (token_secret, known) = match node {
            Some(node) => (self.token_of(request).await?, self.known(node).await?),
            None => (None, Known::default()),
        };
        let token = token_secret.as_ref().and_then(|secret| BootstrapToken::of(secret).ok());
        let facts = Facts {
            request,
            parsed: parsed.as_ref(),
            known: &known,
            token: token.as_ref(),
            now: self.tools.clock.now(),
        };
        match approve::decide(&facts) {
            Decision::NotOurs => Ok(false),
            Decision::Deny(why) => {
                tracing::warn!(
                    request = request.name(),
                    user = request.str_at(&["spec", "username"]),
                    why,
                    "certificate denied"
                );
                self.answer(request, "approval", "Denied", "EdgeletNodePolicy", &why).await.map(|()| true)
            }
            Decision::Approve { node, key, why } => {
                self.take_use(request, token.as_ref(), token_secret.as_ref(), &node).await?;
                self.record(&node, &key).await?;
                tracing::info!(request = request.name(), node, why, "certificate approved");
                self.answer(request, "approval", "Approved", "AutoApproved", why).await.map(|()| true)
            }
        }
    }

    async fn find(&self, namespace: &str, name: &str) -> Result<Option<Object>> {
        match self.tools.client.get(SECRETS, namespace, name).await {
            Err(error) if error.is_not_found() => Ok(None),
            found => found?.object().map(Some),
        }
    }

    /// The Secret of the token that the request was made with.
    async fn token_of(&self, request: &Object) -> Result<Option<Object>> {
        match bootstrap::id_of_user(request.str_at(&["spec", "username"])) {
            Some(id) => self.find(bootstrap::NAMESPACE, &bootstrap::secret_name(id)).await,
            None => Ok(None),
        }
    }

    /// What is on record of a node's name.
    async fn known(&self, node: &str) -> Result<Known> {
        let key = self.find(node_key::NAMESPACE, &node_key::secret_name(node)).await?;
        let is_registered = match self.tools.client.get(NODES, "", node).await {
            Err(error) if error.is_not_found() => false,
            Err(error) => return Err(error),
            Ok(_) => true,
        };
        Ok(Known { key: key.map(|secret| NodeKey::of(&secret)), is_registered })
    }

    /// Counts the use before it is granted: of two requests with a last use, the store lets one through.
    async fn take_use(
        &self,
        request: &Object,
        token: Option<&BootstrapToken>,
        secret: Option<&Object>,
        node: &str,
    ) -> Result<()> {
        let (Some(token), Some(secret)) = (token, secret) else { return Ok(()) };
        // A refusal means that others were faster; the next look denies.
        let used = token.with_use(secret, node, request.uid());
        let Some(used) = used.map_err(|error| Status::unavailable(error.to_string()))? else { return Ok(()) };
        self.tools.client.update(SECRETS, secret.namespace(), secret.name(), "", used).await.map(drop)
    }

    /// Writes down whose name this is from now on. Another key there already: somebody was faster, look again.
    async fn record(&self, node: &str, key: &NodeKey) -> Result<()> {
        match self.tools.client.create(SECRETS, node_key::NAMESPACE, key.object(node)).await {
            Err(error) if error.is_already_exists() => {
                let known = self.known(node).await?.key;
                if known.is_some_and(|known| known.hash == key.hash) { Ok(()) } else { Err(error) }
            }
            written => written.map(drop),
        }
    }

    async fn sign(&self, request: &Object) -> Result<()> {
        let Some(order) = sign::order(request) else { return Ok(()) };
        let parsed = parse(request);
        let order = match order.check(parsed.as_ref()) {
            Ok(parsed) => (order, parsed),
            Err(why) => return self.answer(request, "status", "Failed", "SignerValidationFailure", &why).await,
        };
        let (order, parsed) = order;
        if let Some(node) = order.node(parsed) {
            let hash = &parsed.key_hash;
            match self.known(node).await?.key {
                Some(known) if !known.is(hash) => {
                    let why = approve::other_key(node);
                    return self.answer(request, "status", "Failed", "SignerValidationFailure", &why).await;
                }
                Some(_) => {}
                // Approved by hand: the name is this key's from now on.
                None => self.record(node, &NodeKey::new(hash, std::collections::BTreeMap::default())).await?,
            }
        }
        let authority = self.pki.trust().current.clone();
        let now = self.tools.clock.now();
        let signed = authority.sign(parsed, &order.usages, order.lifetime, now).map_err(Status::internal)?;
        let mut answered = request.clone();
        let encoded = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, signed);
        answered.set(&["status", "certificate"], encoded.into());
        tracing::info!(request = request.name(), subject = parsed.common_name, "certificate issued");
        self.write(answered, "status").await
    }

    /// Adds a condition.
    async fn answer(&self, request: &Object, subresource: &str, kind: &str, reason: &str, message: &str) -> Result<()> {
        let mut answered = request.clone();
        let mut conditions = match answered.unset(&["status", "conditions"]) {
            Some(Value::Array(conditions)) if conditions.len() < CONDITIONS_LIMIT => conditions,
            Some(Value::Array(_)) => return Ok(()),
            _ => Vec::new(),
        };
        conditions.push(json!({"type": kind, "status": "True", "reason": reason, "message": message}));
        answered.set(&["status", "conditions"], Value::Array(conditions));
        self.write(answered, subresource).await
    }

    /// With the revision that was looked at.
    async fn write(&self, request: Object, subresource: &str) -> Result<()> {
        let name = request.name().to_owned();
        self.tools.client.update(CERTIFICATESIGNINGREQUESTS, "", &name, subresource, request).await.map(drop)
    }
}

fn parse(request: &Object) -> std::result::Result<SigningRequest, String> {
    let encoded = request.str_at(&["spec", "request"]);
    let pem = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, encoded);
    let pem = pem.map_err(|error| error.to_string())?;
    SigningRequest::parse(&pem).map_err(|error| error.to_string())
}

impl Reconcile for Controller {
    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Duration>>> {
        Box::pin(self.sync(key))
    }
}
