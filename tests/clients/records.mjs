// An agentd.v1 client on npm's `ws`: checks order and digest by itself and prints what it found.
// node records.mjs URL [RECORD...]: each RECORD is sent, one after each line that arrives.
import { createHash } from 'node:crypto';
import WebSocket from 'ws';

const [url, ...answers] = process.argv.slice(2);
const socket = new WebSocket(url, ['agentd.v1']);
const digest = createHash('sha256');
const found = { types: [], lines: 0, ordered: true, hello: null, end: null, pongs: 0 };
let expected = null;

// Keep-alive from this side too, in the middle of whatever comes.
const pinging = setInterval(() => {
  if (socket.readyState === WebSocket.OPEN) socket.ping('still there');
}, 20);

socket.on('pong', () => { found.pongs += 1; });
socket.on('message', (data) => {
  const record = JSON.parse(data.toString());
  if (found.types.at(-1) !== record.type) found.types.push(record.type);
  if (record.type === 'hello') {
    found.hello = record;
    expected = record.next;
  } else if (record.type === 'stdout' || record.type === 'stderr') {
    if (record.seq !== expected) found.ordered = false;
    expected = record.seq + 1;
    if (record.type === 'stdout') {
      digest.update(record.base64 === undefined ? record.line : Buffer.from(record.base64, 'base64'));
      if (!record.more && record.eol !== false) digest.update('\n');
      found.lines += 1;
      if (answers.length > 0) socket.send(answers.shift());
    }
  } else if (record.type === 'end') {
    found.end = record;
  }
});
socket.on('error', (error) => {
  console.error(String(error));
  process.exitCode = 1;
});
socket.on('close', (code, reason) => {
  clearInterval(pinging);
  console.log(
    JSON.stringify({
      ...found, digest: digest.digest('hex'), code, reason: reason.toString(), protocol: socket.protocol,
    }),
  );
});
