//! Sessions against a client that is written down frame by frame.

use super::super::frame::client::{initial_window, syn_stream};
use super::super::headers::client::Deflater;
use super::*;
use tokio::io::DuplexStream;
use tokio::task::JoinHandle;

struct Client {
    io: DuplexStream,
    deflater: Deflater,
    inflater: Inflater,
    server: JoinHandle<()>,
}

/// A frame from the server: type (0 is data), stream or id, second word or length, payload of data.
type Seen = (u16, u32, u32, Vec<u8>);

impl Client {
    fn of<F>(handle: impl FnOnce(mpsc::Receiver<Stream>) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (io, theirs) = tokio::io::duplex(1 << 20);
        let server = tokio::spawn(serve(theirs, handle));
        Self { io, deflater: Deflater::new(), inflater: Inflater::new(), server }
    }

    async fn put(&mut self, frame: &[u8]) {
        self.io.write_all(frame).await.unwrap();
    }

    async fn open(&mut self, id: u32, headers: &[(&str, &str)]) {
        let block = self.deflater.block(headers);
        self.put(&syn_stream(id, false, &block)).await;
    }

    async fn see(&mut self) -> Option<Seen> {
        let mut head = [0; HEAD_BYTES];
        self.io.read_exact(&mut head).await.ok()?;
        match Head::parse(head).unwrap() {
            Head::Data { stream, fin, length } => {
                let payload = read(&mut self.io, length).await.unwrap();
                Some((0, stream, u32::from(fin), payload.to_vec()))
            }
            Head::Control { kind, length, .. } => {
                let payload = read(&mut self.io, length).await.unwrap();
                if kind == 2 {
                    assert_eq!(self.inflater.headers(&payload[4..]), Ok(Headers::default()));
                }
                let word =
                    |at: usize| payload.get(at..at + 4).map_or(0, |word| u32::from_be_bytes(word.try_into().unwrap()));
                Some((kind, word(0), if kind == 2 { 0 } else { word(4) }, Vec::new()))
            }
        }
    }
}

async fn echo(mut incoming: mpsc::Receiver<Stream>) {
    while let Some(mut stream) = incoming.recv().await {
        tokio::spawn(async move {
            let name = stream.headers.get("name").to_owned();
            if stream.writer.send(name.as_bytes()).await.is_err() {
                return;
            }
            while let Some(chunk) = stream.reader.next().await {
                if stream.writer.send(&chunk).await.is_err() {
                    return;
                }
            }
            stream.writer.finish().await;
        });
    }
}

#[tokio::test(start_paused = true)]
async fn streams_are_replied_to_and_carry_bytes_both_ways() {
    let mut client = Client::of(echo);
    for id in [1, 3] {
        client.open(id, &[("name", "n")]).await;
        assert_eq!(client.see().await, Some((2, id, 0, vec![])));
        assert_eq!(client.see().await, Some((0, id, 0, b"n".to_vec())));
    }
    client.put(&frame::data(3, false, b"hello")).await;
    assert_eq!(client.see().await, Some((0, 3, 0, b"hello".to_vec())));
    client.put(&frame::data(1, true, b"bye")).await;
    assert_eq!(client.see().await, Some((0, 1, 0, b"bye".to_vec())));
    assert_eq!(client.see().await, Some((0, 1, 1, vec![])));
    client.put(&frame::ping(7)).await;
    assert_eq!(client.see().await, Some((6, 7, 0, vec![])));
}

#[tokio::test(start_paused = true)]
async fn what_breaks_the_rules_is_reset() {
    let mut client = Client::of(echo);
    client.open(2, &[]).await;
    assert_eq!(client.see().await, Some((3, 2, reset::PROTOCOL_ERROR, vec![])));
    client.put(&frame::data(9, false, b"x")).await;
    assert_eq!(client.see().await, Some((3, 9, reset::INVALID_STREAM, vec![])));
    client.open(1, &[("name", "a")]).await;
    client.see().await;
    client.see().await;
    client.open(1, &[]).await;
    assert_eq!(client.see().await, Some((3, 1, reset::PROTOCOL_ERROR, vec![])));
    // A type that is not known is read past; a version that is not ours ends the session.
    client.put(&[0x80, 3, 0, 99, 0, 0, 0, 2, 1, 1]).await;
    client.put(&frame::ping(1)).await;
    assert_eq!(client.see().await, Some((6, 1, 0, vec![])));
    client.put(&[0x80, 2, 0, 1, 0, 0, 0, 0]).await;
    let mut rest = Vec::new();
    while let Some(seen) = client.see().await {
        rest.push(seen);
    }
    assert!(rest.contains(&(7, 1, 0, vec![])), "{rest:?}");
}

#[tokio::test(start_paused = true)]
async fn no_more_streams_than_the_limit() {
    let mut client = Client::of(|mut incoming| async move {
        let mut held = Vec::new();
        while let Some(stream) = incoming.recv().await {
            held.push(stream);
        }
    });
    for number in 0..STREAMS_LIMIT as u32 {
        client.open(number * 2 + 1, &[]).await;
        assert_eq!(client.see().await.unwrap().0, 2);
    }
    client.open(4001, &[]).await;
    assert_eq!(client.see().await, Some((3, 4001, reset::REFUSED_STREAM, vec![])));
    // Reset ones make room.
    client.put(&frame::rst_stream(1, reset::CANCEL)).await;
    client.open(4003, &[]).await;
    assert_eq!(client.see().await, Some((2, 4003, 0, vec![])));
}

#[tokio::test(start_paused = true)]
async fn a_reset_reaches_who_holds_the_stream() {
    let (done, told) = tokio::sync::oneshot::channel();
    let mut client = Client::of(|mut incoming| async move {
        let mut stream = incoming.recv().await.unwrap();
        stream.writer.reset().await;
        assert_eq!(stream.writer.send(b"late").await, Err(Gone));
        assert_eq!(stream.reader.next().await, None);
        done.send(()).unwrap();
    });
    client.open(1, &[]).await;
    client.put(&frame::rst_stream(1, reset::CANCEL)).await;
    told.await.unwrap();
    assert_eq!(client.see().await, Some((2, 1, 0, vec![])));
    // No reset answers a reset.
    assert_eq!(client.see().await, Some((7, 1, 0, vec![])));
}

/// The session ends once its last words are read, though the client never stops sending.
#[tokio::test(start_paused = true)]
async fn the_end_comes_after_all_that_was_sent() {
    let mut client = Client::of(|mut incoming| async move {
        let mut stream = incoming.recv().await.unwrap();
        stream.writer.send(&vec![7; 100_000]).await.unwrap();
        stream.writer.finish().await;
    });
    client.open(1, &[]).await;
    client.put(&frame::data(1, false, &vec![1; 200_000])).await;
    assert_eq!(client.see().await, Some((2, 1, 0, vec![])));
    let mut received = 0;
    loop {
        match client.see().await.unwrap() {
            (0, 1, 0, payload) => received += payload.len(),
            (0, 1, 1, _) => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(received, 100_000);
    assert_eq!(client.see().await, Some((7, 1, 0, vec![])));
    assert_eq!(client.see().await, None);
    client.server.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn windows_are_kept_with_a_client_that_names_one() {
    let mut client = Client::of(echo);
    client.put(&initial_window(10)).await;
    client.open(1, &[("name", "0123456789abc")]).await;
    assert_eq!(client.see().await, Some((2, 1, 0, vec![])));
    assert_eq!(client.see().await, Some((0, 1, 0, b"0123456789".to_vec())));
    let blocked = tokio::time::timeout(Duration::from_secs(60), client.see()).await;
    assert!(blocked.is_err(), "the window is used up: {blocked:?}");
    client.put(&frame::window_update(1, 1 << 20)).await;
    assert_eq!(client.see().await, Some((0, 1, 0, b"abc".to_vec())));
    // The session has a window too, of 64 KiB; what we have taken is told as half a window.
    client.put(&frame::data(1, false, &vec![1; 80_000])).await;
    let (mut echoed, mut updates) = (13, Vec::new());
    while let Ok(Some(seen)) = tokio::time::timeout(Duration::from_secs(60), client.see()).await {
        match seen {
            (0, 1, 0, payload) => echoed += payload.len(),
            (9, stream, delta, _) => updates.push((stream, delta)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(echoed, 64 << 10);
    assert_eq!(updates[..2], [(1, 32 << 10), (0, 32 << 10)]);
    client.put(&frame::window_update(0, 1 << 20)).await;
    assert!(matches!(client.see().await, Some((0, 1, 0, _))));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_never_read_does_not_hold_its_session_for_ever() {
    let mut client = Client::of(|mut incoming| async move {
        let _held = incoming.recv().await.unwrap();
        std::future::pending().await
    });
    client.open(1, &[]).await;
    client.put(&frame::data(1, false, &vec![0; 100_000])).await;
    let begun = tokio::time::Instant::now();
    while client.see().await.is_some() {}
    assert!(begun.elapsed() >= STALL_TIMEOUT);
}

/// Half of the frames make sense, and all of their lengths are right, so that the others reach the parsers.
#[tokio::test(start_paused = true)]
async fn whatever_comes_is_survived() {
    for seed in 0..500 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut client = Client::of(echo);
        for _ in 0..20 {
            let kind = random.u16(0..12);
            let payload: Vec<u8> = match (kind, random.bool()) {
                (1, true) => {
                    let block = client.deflater.block(&[("streamtype", "data"), ("requestid", "1")]);
                    [&[0, 0, 0, random.u8(..16)], &[0; 6][..], &block].concat()
                }
                _ => (0..random.usize(..32)).map(|_| random.u8(..)).collect(),
            };
            let length = (payload.len() as u32).to_be_bytes();
            let head = match kind {
                0 => [0, 0, 0, random.u8(..8), random.u8(..2), length[1], length[2], length[3]],
                _ => [0x80, 3, 0, kind as u8, random.u8(..4), length[1], length[2], length[3]],
            };
            // The session may be over.
            if client.io.write_all(&[&head[..], &payload].concat()).await.is_err() {
                break;
            }
        }
        client.io.shutdown().await.unwrap();
        while client.io.read(&mut [0; 1024]).await.unwrap() > 0 {}
        client.server.await.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
}
