// Checks a proof file, written from docs/proofs.md: node proof.mjs FILE HEIGHT:ID (0:CHAIN for the genesis).
// Prints what is proven as JSON; exit code 4 with the fault otherwise. Needs nothing but Node.js.
import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { blockId, decode, encode, isSigned, leafHash, rootOfHashes, taggedHash, transactionId } from './canonical.mjs'

const PRECOMMIT = 2
const BUCKETS = 256
const GENESIS_TIME = 1
const GENESIS_VALIDATORS = 5
const KINDS = { 1: 'balance', 2: 'model', 3: 'tx' }

const sha256 = (...parts) => parts.reduce((hash, part) => hash.update(part), createHash('sha256')).digest()
const same = (one, other) => Buffer.compare(one, other) === 0
const stakeOf = validators => validators.reduce((sum, [, stake]) => sum + BigInt(stake), 0n)
const setHash = validators => taggedHash('validators', encode(validators))

function demand (isRight, fault) {
  if (!isRight) throw new Error(fault)
}

function headerOf (fields) {
  const [, chain, height, , time, parent, , transactionsRoot, , validators, nextValidators, stateRoot] = fields
  return { id: blockId(fields), chain, height, time, parent, transactionsRoot, validators, nextValidators, stateRoot }
}

function genesisOf (bytes) {
  const fields = decode(bytes)
  const chain = taggedHash('genesis', bytes)
  return { id: chain, chain, height: 0, time: fields[GENESIS_TIME], nextValidators: setHash(fields[GENESIS_VALIDATORS]) }
}

function checkStep (trusted, header, [height, round, id, signatures], sets) {
  demand(same(header.chain, trusted.chain), 'another chain')
  demand(header.height > trusted.height && header.time > trusted.time, 'height or time does not grow')
  demand(height === header.height && same(id, header.id), 'the commit is for another block')
  const own = sets.get(header.validators.toString('hex'))
  demand(own, 'a set of validators is missing')
  demand(signatures.every(([index], place) => place === 0 || index > signatures[place - 1][0]), 'indexes do not ascend')
  const signers = signatures.map(([index]) => own[index])
  demand(signers.every(Boolean), 'an unknown validator')
  demand(3n * stakeOf(signers) > 2n * stakeOf(own), 'no quorum')
  signatures.forEach(([index, signature]) => {
    demand(isSigned(own[index][0], 'vote', header.chain, [PRECOMMIT, height, round, id], signature), 'a bad signature')
  })
  if (header.height === trusted.height + 1) {
    demand(same(header.parent, trusted.id), 'another parent')
    demand(same(header.validators, trusted.nextValidators), 'validators that were not named')
    return
  }
  const named = sets.get(trusted.nextValidators.toString('hex'))
  demand(named, 'a set of validators is missing')
  const signed = new Set(signers.map(([account]) => account.toString('hex')))
  const common = named.filter(([account]) => signed.has(account.toString('hex')))
  demand(3n * stakeOf(common) > stakeOf(named), 'too few of the trusted validators signed')
}

function followChain ([genesisBytes, anchor, steps, recordedSets], trustedHeight, trustedId) {
  const sets = new Map()
  const lists = recordedSets.map(([validators]) => validators)
  if (genesisBytes.length) lists.push(decode(genesisBytes)[GENESIS_VALIDATORS])
  for (const validators of lists) sets.set(setHash(validators).toString('hex'), validators)
  const starts = genesisBytes.length ? [genesisOf(genesisBytes)] : []
  const headers = steps.map(([fields]) => headerOf(fields))
  const all = [...starts, ...anchor.map(headerOf), ...headers]
  let believed = all.find(block => block.height === trustedHeight)
  demand(believed && same(believed.id, trustedId), 'it does not start from what is trusted')
  headers.forEach((header, place) => {
    if (header.height <= believed.height) return demand(header.height <= trustedHeight, 'height does not grow')
    checkStep(believed, header, steps[place][1], sets)
    believed = header
  })
  return believed
}

/** RFC 9162, section 2.1.3.2. */
function checkInclusion (leaf, index, size, path, root) {
  demand(index >= 0 && index < size, 'no such leaf')
  let node = leaf
  let [position, last] = [index, size - 1]
  for (const sibling of path) {
    demand(last > 0, 'the path is too long')
    if (position % 2 || position === last) {
      node = sha256(Buffer.from([1]), sibling, node)
      while (position && position % 2 === 0) [position, last] = [Math.floor(position / 2), Math.floor(last / 2)]
    } else {
      node = sha256(Buffer.from([1]), node, sibling)
    }
    [position, last] = [Math.floor(position / 2), Math.floor(last / 2)]
  }
  demand(last === 0 && same(node, root), 'the path leads to another root')
}

/** The value of a key in a state, or null where the neighbours leave no place for it. */
function valueOf (root, key, [size, entries, bucketPath, bucketRoot]) {
  checkInclusion(leafHash(bucketRoot), sha256(key)[0], BUCKETS, bucketPath, root)
  for (const [entryKey, value, index, path] of entries) {
    checkInclusion(leafHash(encode([entryKey, value])), index, size, path, bucketRoot)
  }
  if (entries.length === 0) return demand(same(bucketRoot, rootOfHashes([])), 'the bucket is not empty') ?? null
  const [first, last] = [entries[0], entries[entries.length - 1]]
  if (entries.length === 1 && same(first[0], key)) return first[1]
  const order = Buffer.compare(first[0], key)
  const isEnclosed = entries.length === 2
    ? order < 0 && Buffer.compare(key, last[0]) < 0 && last[2] === first[2] + 1
    : (order > 0 && first[2] === 0) || (order < 0 && first[2] === size - 1)
  demand(isEnclosed, 'the entries do not enclose the key')
  return null
}

function number64 (value) {
  const bytes = Buffer.alloc(8)
  bytes.writeBigUInt64BE(BigInt(value))
  return bytes
}

const proven = {
  balance (header, [account, state]) {
    const value = valueOf(header.stateRoot, Buffer.concat([Buffer.from('account/'), account]), state)
    return { account: account.toString('hex'), balance: value === null ? null : Number(decode(value)[0]) }
  },
  model (header, [task, round, client, state]) {
    const key = Buffer.concat([Buffer.from('settled/'), task, number64(round)])
    const [, , , , , clients, , , aggregation] = decode(valueOf(header.stateRoot, key, state))
    const [, , , , , , [revealed], cluster, gross, fee] = clients.find(([account]) => same(account, client))
    return { model: revealed[0].toString('hex'), output: aggregation[0][3][cluster].toString('hex'), net: gross - fee }
  },
  tx (header, [transaction, index, leaves, path]) {
    checkInclusion(leafHash(transaction), index, leaves, path, header.transactionsRoot)
    return { id: transactionId(decode(transaction)[0]).toString('hex') }
  }
}

function check (data, trust) {
  const [height, id] = trust.split(':')
  const [magic, version, body] = decode(data)
  demand(magic === 'bflnode proof' && version === 1, 'no proof file of this version')
  const [chain, kind, claim] = decode(body)
  const header = followChain(chain, Number(height), Buffer.from(id, 'hex'))
  return { kind: KINDS[kind], height: header.height, time_ms: header.time, ...proven[KINDS[kind]](header, decode(claim)) }
}

try {
  console.log(JSON.stringify(check(readFileSync(process.argv[2]), process.argv[3])))
} catch (error) {
  console.error(error.message)
  process.exitCode = 4
}
