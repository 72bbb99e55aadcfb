use super::rhythm::Rhythm;
use super::*;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, watch};

async fn serve(
    io: impl Stream,
    kubelet: &mpsc::Sender<Box<dyn Stream>>,
    changed: &mut watch::Receiver<u64>,
) -> node::End {
    node::serve(io, &kubelet.clone().into(), &mut Rhythm::default(), changed, &watch::Sender::new(None)).await
}

/// A tunnel over a pipe: the server's end, and a node that echoes on every stream.
async fn tunnel() -> (server::Tunnel, tokio::task::JoinHandle<node::End>, watch::Sender<u64>) {
    let (near, far) = tokio::io::duplex(PIPE_BYTES);
    let (sender, mut streams) = mpsc::channel::<Box<dyn Stream>>(16);
    let (changes, mut changed) = watch::channel(0);
    let node = tokio::spawn(async move { serve(near, &sender, &mut changed).await });
    tokio::spawn(async move {
        while let Some(mut stream) = streams.recv().await {
            tokio::spawn(async move {
                let mut buffer = vec![0; 1000];
                while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                    stream.write_all(&buffer[..read]).await.unwrap();
                }
                stream.shutdown().await.unwrap();
            });
        }
    });
    (server::open(far).await.unwrap(), node, changes)
}

#[tokio::test]
async fn streams_carry_more_than_a_window_both_ways_and_end() {
    let (tunnel, _node, _changes) = tunnel().await;
    tokio::spawn(tunnel.run);
    let stream = tunnel.dial.dial().await.unwrap();
    let (mut input, mut output) = tokio::io::split(stream);
    let sent: Vec<u8> = (0..3_000_000_u32).map(|number| number.to_le_bytes()[0]).collect();
    let expected = sent.clone();
    let writer = tokio::spawn(async move {
        output.write_all(&sent).await.unwrap();
        output.shutdown().await.unwrap();
        output
    });
    let mut received = Vec::new();
    input.read_to_end(&mut received).await.unwrap();
    assert!(received == expected);
    writer.await.unwrap();
}

#[tokio::test]
async fn many_streams_share_a_tunnel_and_a_dropped_one_harms_no_other() {
    let (tunnel, _node, _changes) = tunnel().await;
    tokio::spawn(tunnel.run);
    let mut kept = tunnel.dial.dial().await.unwrap();
    for _ in 0..600 {
        let mut stream = tunnel.dial.dial().await.unwrap();
        stream.write_all(b"x").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'x');
    }
    kept.write_all(b"y").await.unwrap();
    assert_eq!(kept.read_u8().await.unwrap(), b'y');
}

#[tokio::test]
async fn streams_that_nobody_reads_stall_no_other_and_one_too_many_is_refused() {
    let (tunnel, _node, _changes) = tunnel().await;
    tokio::spawn(tunnel.run);
    let mut stalled = Vec::new();
    for _ in 1..STREAMS_LIMIT {
        let (input, mut output) = tokio::io::split(tunnel.dial.dial().await.unwrap());
        // It all comes back, and is never read.
        let writer = tokio::spawn(async move {
            let mut written = 0_usize;
            while let Ok(Ok(length)) = tokio::time::timeout(Duration::from_millis(300), output.write(&[7; 4096])).await
            {
                written += length;
            }
            written
        });
        stalled.push((input, writer));
    }
    let mut held = Vec::new();
    for (input, writer) in stalled {
        let written = writer.await.unwrap();
        let window = WINDOW_BYTES as usize;
        // A window each way, and what is on its way between them.
        assert!(written >= window && written <= 3 * window, "{written}");
        held.push(input);
    }

    let (mut input, mut output) = tokio::io::split(tunnel.dial.dial().await.unwrap());
    let error = tunnel.dial.dial().await.err().expect("one too many");
    assert_eq!(error.to_string(), "128 streams to the node are open already");
    let sent = vec![9; 1 << 20];
    let writing = tokio::spawn(async move { output.write_all(&sent).await });
    let mut received = vec![0; 1 << 20];
    let read = tokio::time::timeout(Duration::from_secs(30), input.read_exact(&mut received)).await;
    read.expect("it flows").unwrap();
    writing.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn pings_keep_an_idle_tunnel_and_a_silent_server_ends_it() {
    let (tunnel, node, _changes) = tunnel().await;
    let mut heard = tunnel.heard.clone();
    let run = tokio::spawn(tunnel.run);
    for _ in 0..10 {
        heard.mark_unchanged();
        tokio::time::timeout(Duration::from_secs(20), heard.changed()).await.expect("a ping").unwrap();
    }
    assert!(!node.is_finished());
    // As after a power cut of the server, with the connection left open: nothing is answered any more.
    run.abort();
    let end = tokio::time::timeout(Duration::from_secs(60), node).await.expect("noticed").unwrap();
    assert!(matches!(end, node::End::Silent | node::End::Closed | node::End::Broken(_)), "{end}");
}

#[tokio::test(start_paused = true)]
async fn a_node_is_sure_of_what_the_server_has_heard_and_of_no_more() {
    let (near, far) = tokio::io::duplex(PIPE_BYTES);
    let (sender, _streams) = mpsc::channel::<Box<dyn Stream>>(16);
    let (_changes, mut changed) = watch::channel(0);
    let assured = watch::Sender::new(None);
    let mut sure = assured.subscribe();
    let node = async move { node::serve(near, &sender.into(), &mut Rhythm::default(), &mut changed, &assured).await };
    tokio::spawn(node);
    let tunnel = server::open(far).await.unwrap();
    let mut heard = tunnel.heard.clone();
    let run = tokio::spawn(tunnel.run);
    for _ in 0..10 {
        sure.changed().await.unwrap();
        let (sure, heard) = (sure.borrow_and_update().unwrap(), *heard.borrow_and_update());
        assert!(sure <= heard && heard.duration_since(sure) < Duration::from_secs(1));
    }
    let last = *sure.borrow();
    run.abort();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(*sure.borrow(), last, "a ping without an answer proves nothing");
}

#[tokio::test(start_paused = true)]
async fn a_new_address_asks_the_server_at_once() {
    let (near, far) = tokio::io::duplex(PIPE_BYTES);
    let (sender, _streams) = mpsc::channel::<Box<dyn Stream>>(16);
    let (changes, mut changed) = watch::channel(0);
    let node = tokio::spawn(async move { serve(near, &sender, &mut changed).await });
    let tunnel = server::open(far).await.unwrap();
    let run = tokio::spawn(tunnel.run);
    tokio::time::sleep(Duration::from_secs(1)).await;
    // The server's end is there and does nothing: as when the packets go nowhere.
    let held = tunnel.dial;
    run.abort();
    let started = crate::clock::monotonic();
    changes.send_replace(1);
    node.await.unwrap();
    assert!(started.elapsed() <= Duration::from_secs(4), "{:?}", started.elapsed());
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn a_silent_node_is_given_up_by_the_server() {
    let (near, far) = tokio::io::duplex(PIPE_BYTES);
    let tunnel = server::open(far).await.unwrap();
    let started = crate::clock::monotonic();
    let error = tunnel.run.await;
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
    assert!(started.elapsed() >= Duration::from_secs(60));
    drop(near);
}

#[tokio::test]
async fn the_second_tunnel_of_a_node_replaces_the_first() {
    let tunnels = Tunnels::default();
    let (sender, _streams) = mpsc::channel(1);
    let mut first = tunnels.attach("a", Arc::new(Pipe(sender.clone())));
    let second = tunnels.attach("a", Arc::new(Pipe(sender)));
    first.replaced().await;
    drop(first);
    assert!(tunnels.is_connected("a"), "the first gives up only its own place");
    drop(second);
    assert!(!tunnels.is_connected("a"));
    assert_eq!(tunnels.dial("a").await.err().unwrap().to_string(), "node a is not connected");
}

#[tokio::test]
async fn a_knock_at_a_node_is_heard() {
    let (near, far) = tokio::io::duplex(PIPE_BYTES);
    let (sender, _streams) = mpsc::channel::<Box<dyn Stream>>(16);
    let (_changes, mut changed) = watch::channel(0);
    let doors = node::Doors::from(sender);
    let knocks = doors.relay.clone();
    tokio::spawn(async move {
        node::serve(near, &doors, &mut Rhythm::default(), &mut changed, &watch::Sender::new(None)).await
    });
    let tunnel = server::open(far).await.unwrap();
    tokio::spawn(tunnel.run);
    tunnel.dial.knock().await.unwrap();
    tokio::time::timeout(Duration::from_secs(5), knocks.notified()).await.expect("heard");
}
