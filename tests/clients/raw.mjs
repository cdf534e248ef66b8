// A raw client on npm's `ws`: prints what it got as one JSON object.
// node raw.mjs URL [SUBPROTOCOL]
import WebSocket from 'ws';

const [url, subprotocol] = process.argv.slice(2);
const socket = new WebSocket(url, subprotocol ? [subprotocol] : []);
const messages = [];

socket.on('message', (data, isBinary) => {
  messages.push(isBinary ? { base64: data.toString('base64') } : data.toString());
});
socket.on('unexpected-response', (request, response) => {
  console.log(JSON.stringify({ status: response.statusCode }));
  process.exit(0);
});
socket.on('error', (error) => {
  console.error(String(error));
  process.exitCode = 1;
});
socket.on('close', (code, reason) => {
  console.log(
    JSON.stringify({ messages, code, reason: reason.toString(), protocol: socket.protocol }),
  );
});
