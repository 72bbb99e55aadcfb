//! HTTP in: TLS, authentication, authorization, REST, watches, discovery.
