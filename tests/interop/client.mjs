// A client of the network in JavaScript, written from docs/wire.md and not from the node's code.
//
// Reads from standard input {address, chain, seed, validators, credential, recipient, blob}, all bytes in hex, and joins the
// network: says hello, takes part in gossip, opens an account, moves a token, reads all blocks and a blob, and checks each
// hash and signature itself. Writes what it found as one JSON object; ends with 1 and the reason where something is wrong.
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { gossipsub } from '@chainsafe/libp2p-gossipsub'
import { identify } from '@libp2p/identify'
import { ping } from '@libp2p/ping'
import { tcp } from '@libp2p/tcp'
import { createLibp2p } from 'libp2p'
import { multiaddr } from '@multiformats/multiaddr'
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import {
  blobId, blockId, decode, encode, isSigned, keyOf, leafHash, taggedHash, transactionId, transactionsRoot
} from './canonical.mjs'

// libp2p 2 calls what Node.js has from version 22 on.
Promise.withResolvers ??= function () {
  const parts = {}
  parts.promise = new Promise((resolve, reject) => Object.assign(parts, { resolve, reject }))
  return parts
}

const HELLO = '/bflnode/hello/2'
const BLOCKS = '/bflnode/blocks/1'
const MANIFESTS = '/bflnode/manifests/1'
const CHUNKS = '/bflnode/chunks/1'
const TRANSACTIONS = '/bflnode/transactions/1'
const PUSHES = ['/bflnode/proposals/1', '/bflnode/votes/1', TRANSACTIONS, '/bflnode/status/1']
const MAX_FRAME_BYTES = 4 * 1024 * 1024
const [ADMIT, TRANSFER] = [2, 1]
const PRECOMMIT = 2
const TOKEN = 1_000_000
const DEADLINE_MS = 60_000

const hex = bytes => Buffer.from(bytes).toString('hex')
const same = (left, right) => hex(left) === hex(right)

/** Length-prefixed frames over a libp2p stream. */
class Frames {
  #waiting = []
  #wake = () => {}
  #buffer = Buffer.alloc(0)

  constructor (stream) {
    this.source = stream.source[Symbol.asyncIterator]()
    stream.sink(this.#outgoing()).catch(() => {})
  }

  async * #outgoing () {
    while (true) {
      while (this.#waiting.length > 0) yield this.#waiting.shift()
      await new Promise(resolve => { this.#wake = resolve })
    }
  }

  send (payload) {
    const length = Buffer.alloc(4)
    length.writeUInt32BE(payload.length)
    this.#waiting.push(Buffer.concat([length, payload]))
    this.#wake()
  }

  /** The next frame; null at the end of the stream. */
  async receive () {
    if (!await this.#fill(4)) return null
    const size = this.#buffer.readUInt32BE(0)
    assert(size <= MAX_FRAME_BYTES, `a frame of ${size} bytes`)
    assert(await this.#fill(4 + size), 'cut off inside a frame')
    const payload = this.#buffer.subarray(4, 4 + size)
    this.#buffer = this.#buffer.subarray(4 + size)
    return payload
  }

  async #fill (size) {
    while (this.#buffer.length < size) {
      const { value, done } = await this.source.next()
      if (done) return false
      this.#buffer = Buffer.concat([this.#buffer, value.subarray()])
    }
    return true
  }
}

class Client {
  pushes = Object.fromEntries(PUSHES.map(protocol => [protocol, 0]))
  gossiped = { transactions: [], blocks: [] }
  #streams = new Map()

  constructor (task) {
    this.chain = Buffer.from(task.chain, 'hex')
    this.key = keyOf(Buffer.from(task.seed, 'hex'))
    this.validators = task.validators.map(text => Buffer.from(text, 'hex'))
  }

  async open (address) {
    this.topics = ['transactions', 'blocks'].map(name => `/bflnode/${hex(this.chain)}/${name}/1`)
    this.host = await createLibp2p({
      transports: [tcp()],
      connectionEncrypters: [noise()],
      streamMuxers: [yamux()],
      services: { identify: identify(), ping: ping(), pubsub: gossipsub({ emitSelf: false }) }
    })
    // The node says hello to us as well, and hangs up on whoever doesn't answer. So this comes before the dial.
    await this.host.handle(HELLO, ({ stream, connection }) => this.#answerHellos(new Frames(stream), connection))
    for (const protocol of PUSHES) {
      await this.host.handle(protocol, ({ stream }) => this.#takePushes(protocol, new Frames(stream)))
    }
    this.host.services.pubsub.addEventListener('message', ({ detail }) => this.#takeGossip(detail))
    for (const topic of this.topics) this.host.services.pubsub.subscribe(topic)
    this.connection = await this.host.dial(multiaddr(address))
  }

  hello () {
    const payload = [this.host.peerId.toString(), this.key.account]
    const signature = this.key.sign('hello', this.chain, payload)
    return encode([this.chain, 'javascript', this.key.account, 0, Date.now(), [], signature])
  }

  /** Whose hello it is; throws where it isn't of our chain, or not signed for the identity that it came from. */
  welcome (data, peer) {
    const [chain, version, account, height, timeMs, addresses, signature] = decode(data)
    assert(same(chain, this.chain), 'a hello of another chain')
    assert(isSigned(account, 'hello', chain, [peer.toString(), account], signature), 'a hello with a bad signature')
    return { version, account: hex(account), height, timeMs, addresses }
  }

  async #answerHellos (frames, connection) {
    for (let request; (request = await frames.receive()) !== null;) {
      this.welcome(request, connection.remotePeer)
      frames.send(Buffer.concat([Buffer.from([0]), this.hello()]))
    }
  }

  async #takePushes (protocol, frames) {
    for (let message; (message = await frames.receive()) !== null;) {
      decode(message)
      this.pushes[protocol] += 1
    }
  }

  #takeGossip ({ topic, data }) {
    const isBlock = topic === this.topics[1]
    this.gossiped[isBlock ? 'blocks' : 'transactions'].push(decode(data))
  }

  /** One request, one answer; a stream serves any number of them. */
  async ask (protocol, request) {
    if (!this.#streams.has(protocol)) {
      this.#streams.set(protocol, new Frames(await this.connection.newStream(protocol)))
    }
    const frames = this.#streams.get(protocol)
    frames.send(request)
    const answer = await frames.receive()
    assert(answer !== null && answer.length > 0, `${protocol}: no answer`)
    if (answer[0] !== 0) throw Object.assign(new Error(answer.subarray(1).toString()), { status: answer[0] })
    return answer.subarray(1)
  }

  sign (kind, nonce, body) {
    const payload = [1, kind, this.key.account, nonce, 0, 0, body]
    return { id: hex(transactionId(payload)), transaction: [payload, this.key.sign('tx', this.chain, payload)] }
  }

  async push (protocol, message) {
    new Frames(await this.connection.newStream(protocol)).send(encode(message))
  }

  /** Final blocks from a height on, each checked against its parent and by the signatures of its commit. */
  async blocks (start, parent) {
    const [encoded] = decode(await this.ask(BLOCKS, encode([start, 32])))
    const found = []
    for (const [index, data] of encoded.entries()) {
      const { id, header, transactions } = this.check(decode(data))
      assert.equal(header[2], start + index)
      assert(same(header[5], parent), 'a block on another parent')
      found.push({ id: hex(id), height: header[2], transactions: transactions.map(([payload]) => hex(transactionId(payload))) })
      parent = id
    }
    return found
  }

  check ([[header, transactions, lastCommit], [height, round, id, signatures]]) {
    assert(same(header[1], this.chain) && same(blockId(header), id) && header[2] === height, 'a commit of another block')
    assert(same(header[7], transactionsRoot(transactions)), 'other transactions')
    assert(same(header[8], taggedHash('commit-hash', encode(lastCommit))), 'another last commit')
    const payload = [PRECOMMIT, height, round, id]
    const signers = new Set()
    for (const [index, signature] of signatures) {
      assert(isSigned(this.validators[index], 'vote', this.chain, payload, signature), 'a bad signature in a commit')
      signers.add(index)
    }
    assert(3 * signers.size > 2 * this.validators.length, 'no quorum of equal stakes')
    return { id, header, transactions }
  }

  /** A blob in checked chunks. */
  async blob (id) {
    const [size, hashes] = decode(await this.ask(MANIFESTS, encode([id])))
    assert(same(blobId(size, hashes), id), 'the manifest of another blob')
    const chunks = []
    for (const [index, expected] of hashes.entries()) {
      const chunk = await this.ask(CHUNKS, encode([id, index]))
      assert(same(leafHash(chunk), expected), `chunk ${index} is not what the manifest says`)
      chunks.push(Buffer.from(chunk))
    }
    const content = Buffer.concat(chunks)
    assert.equal(content.length, size)
    return { size, chunks: chunks.length, hash: hex(taggedHash('test', content)) }
  }
}

async function until (what, find) {
  for (const end = Date.now() + DEADLINE_MS; Date.now() < end;) {
    const found = await find()
    if (found) return found
    await new Promise(resolve => setTimeout(resolve, 50))
  }
  throw new Error(`not within ${DEADLINE_MS} ms: ${what}`)
}

async function main () {
  const task = JSON.parse(readFileSync(0, 'utf8'))
  const client = new Client(task)
  await client.open(task.address)
  const { pubsub } = client.host.services
  const inBlock = id => until(`transaction ${id} in a block`, async () =>
    (await client.blocks(1, client.chain)).find(block => block.transactions.includes(id)))

  const pingMs = await client.host.services.ping.ping(client.connection.remotePeer)
  const hello = client.welcome(await client.ask(HELLO, client.hello()), client.connection.remotePeer)

  const admit = client.sign(ADMIT, 0, [Buffer.from(task.credential, 'hex')])
  await client.push(TRANSACTIONS, [[admit.transaction]])
  await inBlock(admit.id)

  await until('a mesh', () => client.topics.every(topic => pubsub.getMeshPeers(topic).length > 0))
  const transfer = client.sign(TRANSFER, 0, [Buffer.from(task.recipient, 'hex'), TOKEN])
  await pubsub.publish(client.topics[0], encode([[transfer.transaction]]))
  const paid = await inBlock(transfer.id)

  await until('the gossip of a final block', () => client.gossiped.blocks.length > 0)
  const gossiped = client.gossiped.blocks.map(final => hex(client.check(final).id))
  const refusal = await client.blob(Buffer.alloc(32)).catch(error => `${error.status} ${error.message}`)
  console.log(JSON.stringify({
    peer: client.host.peerId.toString(),
    account: hex(client.key.account),
    protocols: (await client.host.peerStore.get(client.connection.remotePeer)).protocols,
    pings: pingMs >= 0,
    hello,
    admit: admit.id,
    transfer: transfer.id,
    blocks: await client.blocks(1, client.chain),
    paid: paid.id,
    gossiped,
    pushes: client.pushes,
    blob: await client.blob(Buffer.from(task.blob, 'hex')),
    refusal
  }))
  await client.host.stop()
}

// A stream that the node leaves open would keep the process alive.
main().then(() => process.exit(0), error => {
  console.error(error)
  process.exit(1)
})
