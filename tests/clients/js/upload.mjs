// Drives tus-js-client as it comes. One JSON object on stdin says what to do, one on stdout what came of it.
import { existsSync, readFileSync, writeFileSync, createReadStream } from 'node:fs'
import { PassThrough } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import * as tus from 'tus-js-client'

const asked = JSON.parse(readFileSync(0, 'utf8'))
const told = { requests: [], location: null, error: null, resumedAt: null }
const source = asked.stream ? createReadStream(asked.file).pipe(new PassThrough()) : readFileSync(asked.file)
let chunks = 0

function token() {
  return readFileSync(asked.token, 'utf8').trim()
}

// a token that expires midway: the test expires it once the marker is there, and leaves a fresh one
async function waitForExpiry() {
  if (!asked.marker || chunks !== 3 || existsSync(asked.marker)) return
  writeFileSync(asked.marker, 'now')
  while (!existsSync(asked.marker + '.expired')) await sleep(10)
}

function upload(handlers) {
  return new tus.Upload(source, {
    endpoint: asked.endpoint,
    retryDelays: [0, 50, 100, 200, 400, 400, 400, 400, 400, 400, 400, 400],
    metadata: asked.metadata ?? {},
    ...asked.options,
    async onBeforeRequest(request) {
      await waitForExpiry()
      request.setHeader('Authorization', `Bearer ${token()}`)
    },
    onAfterResponse(request, response) {
      told.requests.push([request.getMethod(), response.getStatus()])
      if (response.getStatus() === 401 && asked.fresh) asked.token = asked.fresh
    },
    onShouldRetry(error) {
      const status = error.originalResponse ? error.originalResponse.getStatus() : 0
      return status === 0 || status >= 500 || status === 409 || status === 423 || (status === 401 && !!asked.fresh)
    },
    onChunkComplete() { chunks += 1 },
    ...handlers,
  })
}

function run(prepare) {
  return new Promise((resolve) => {
    const one = upload({
      onSuccess() { resolve(one) },
      onError(error) { told.error = String(error); resolve(one) },
      ...(prepare ? prepare(() => one, resolve) : {}),
    })
    one.start()
  })
}

let last
if (asked.action === 'abort and resume') {
  const first = await run((self, resolve) => ({
    async onProgress(sent) {
      if (sent > asked.abortAt) { await self().abort(); resolve(self()) }
    },
  }))
  asked.options = { ...asked.options, uploadUrl: first.url }
  last = await run(() => ({ onUploadUrlAvailable() {}, onProgress(sent) { told.resumedAt ??= sent } }))
} else if (asked.action === 'terminate') {
  last = await run((self, resolve) => ({
    async onProgress(sent) {
      if (sent > asked.abortAt) { await self().abort(true); resolve(self()) }
    },
  }))
} else {
  last = await run()
}
told.location = last.url
process.stdout.write(JSON.stringify(told))
process.exit(0)
