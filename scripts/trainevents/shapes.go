package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"

	"slipstream/pkg/event"
)

// shapes are records as their lexicons have them, as far as known, with nothing in them: posts of all
// sorts, Bluesky's less common records, and the commoner of other people's apps. A text that
// begins with @ stands for what is different every time: @did, @cid, @tid, @time, @text, @url;
// @at:<collection> is a URI, @ref:<collection> a strong reference, @blob:<mime type> a blob.
// A number is any of its length.
//
// The weight is a guess at how common one is among those of its collection or, outside the
// four large collections, among all others.
var shapes = []struct {
	weight           int
	operation        string
	collection, rkey string
	record           string // "": a delete
}{
	// Replies with pictures, quotes with pictures, links, GIFs, labels, other clients.
	{30, "create", "app.bsky.feed.post", "@tid", `{"text":"@text","$type":"app.bsky.feed.post","langs":["en"],"reply":{"root":"@ref:app.bsky.feed.post","parent":"@ref:app.bsky.feed.post"},"createdAt":"@time"}`},
	{15, "create", "app.bsky.feed.post", "@tid", `{"text":"@text","$type":"app.bsky.feed.post","langs":["en"],"createdAt":"@time"}`},
	{4, "create", "app.bsky.feed.post", "@tid", `{"text":"@text","$type":"app.bsky.feed.post","langs":["ja"],"reply":{"root":"@ref:app.bsky.feed.post","parent":"@ref:app.bsky.feed.post"},"createdAt":"@time"}`},
	{3, "create", "app.bsky.feed.post", "@tid", `{"text":"@text","$type":"app.bsky.feed.post","createdAt":"@time"}`},
	{12, "create", "app.bsky.feed.post", "@tid", `{"text":"@text","$type":"app.bsky.feed.post","embed":{"$type":"app.bsky.embed.images","images":[{"alt":"","image":"@blob:image/jpeg","aspectRatio":{"width":1500,"height":2000}}]},"langs":["en"],"createdAt":"@time"}`},
	{5, "create", "app.bsky.feed.post", "@tid", `{"text":"@text","$type":"app.bsky.feed.post","embed":{"$type":"app.bsky.embed.images","images":[{"alt":"","image":"@blob:image/jpeg","aspectRatio":{"width":1500,"height":2000}},{"alt":"","image":"@blob:image/jpeg","aspectRatio":{"width":1500,"height":2000}}]},"langs":["ja"],"createdAt":"@time"}`},
	{5, "create", "app.bsky.feed.post", "@tid", `{"text":"@text","$type":"app.bsky.feed.post","embed":{"$type":"app.bsky.embed.images","images":[{"alt":"@text","image":"@blob:image/webp","aspectRatio":{"width":1500,"height":2000}}]},"langs":["en"],"reply":{"root":"@ref:app.bsky.feed.post","parent":"@ref:app.bsky.feed.post"},"createdAt":"@time"}`},
	{4, "create", "app.bsky.feed.post", "@tid", `{"text":"@text","$type":"app.bsky.feed.post","embed":{"$type":"app.bsky.embed.images","images":[{"alt":"@text","image":"@blob:image/png","aspectRatio":{"width":1500,"height":2000}}]},"langs":["en"],"facets":[{"index":{"byteEnd":120,"byteStart":110},"features":[{"tag":"@text","$type":"app.bsky.richtext.facet#tag"}]},{"index":{"byteEnd":120,"byteStart":110},"features":[{"tag":"@text","$type":"app.bsky.richtext.facet#tag"}]}],"createdAt":"@time"}`},
	{10, "create", "app.bsky.feed.post", "@tid", `{"text":"@text","$type":"app.bsky.feed.post","embed":{"$type":"app.bsky.embed.external","external":{"uri":"@url","thumb":"@blob:image/jpeg","title":"@text","description":"@text"}},"langs":["en"],"createdAt":"@time"}`},
	{8, "create", "app.bsky.feed.post", "@tid", `{"text":"@text","$type":"app.bsky.feed.post","embed":{"$type":"app.bsky.embed.external","external":{"uri":"@url","thumb":"@blob:image/jpeg","title":"@text","description":"@text"}},"langs":["en"],"facets":[{"index":{"byteEnd":120,"byteStart":110},"features":[{"uri":"@url","$type":"app.bsky.richtext.facet#link"}]}],"createdAt":"@time"}`},
	{4, "create", "app.bsky.feed.post", "@tid", `{"text":"@text","$type":"app.bsky.feed.post","embed":{"$type":"app.bsky.embed.external","external":{"uri":"@url","title":"@text","description":"@text"}},"facets":[{"index":{"byteEnd":120,"byteStart":110},"features":[{"uri":"@url","$type":"app.bsky.richtext.facet#link"}]}],"createdAt":"@time"}`},
	{3, "create", "app.bsky.feed.post", "@tid", `{"text":"@text","$type":"app.bsky.feed.post","embed":{"$type":"app.bsky.embed.external","external":{"uri":"https://media.tenor.com/@text","thumb":"@blob:image/jpeg","title":"@text","description":"ALT: @text"}},"langs":["en"],"reply":{"root":"@ref:app.bsky.feed.post","parent":"@ref:app.bsky.feed.post"},"createdAt":"@time"}`},
	{8, "create", "app.bsky.feed.post", "@tid", `{"text":"@text","$type":"app.bsky.feed.post","embed":{"$type":"app.bsky.embed.record","record":"@ref:app.bsky.feed.post"},"langs":["en"],"createdAt":"@time"}`},
	{3, "create", "app.bsky.feed.post", "@tid", `{"text":"@text","$type":"app.bsky.feed.post","embed":{"$type":"app.bsky.embed.recordWithMedia","media":{"$type":"app.bsky.embed.images","images":[{"alt":"","image":"@blob:image/jpeg","aspectRatio":{"width":1500,"height":2000}}]},"record":{"$type":"app.bsky.embed.record","record":"@ref:app.bsky.feed.post"}},"langs":["en"],"createdAt":"@time"}`},
	{2, "create", "app.bsky.feed.post", "@tid", `{"text":"@text","$type":"app.bsky.feed.post","embed":{"$type":"app.bsky.embed.recordWithMedia","media":{"$type":"app.bsky.embed.external","external":{"uri":"@url","thumb":"@blob:image/jpeg","title":"@text","description":"@text"}},"record":{"$type":"app.bsky.embed.record","record":"@ref:app.bsky.feed.post"}},"langs":["en"],"createdAt":"@time"}`},
	{3, "create", "app.bsky.feed.post", "@tid", `{"text":"@text","$type":"app.bsky.feed.post","embed":{"$type":"app.bsky.embed.video","video":"@blob:video/mp4","aspectRatio":{"width":1080,"height":1920}},"langs":["en"],"createdAt":"@time"}`},
	{2, "create", "app.bsky.feed.post", "@tid", `{"text":"@text","$type":"app.bsky.feed.post","embed":{"alt":"@text","$type":"app.bsky.embed.video","video":"@blob:video/mp4","aspectRatio":{"width":1080,"height":1920},"presentation":"gif"},"langs":["en"],"createdAt":"@time"}`},
	{5, "create", "app.bsky.feed.post", "@tid", `{"text":"@text","$type":"app.bsky.feed.post","langs":["en"],"reply":{"root":"@ref:app.bsky.feed.post","parent":"@ref:app.bsky.feed.post"},"facets":[{"$type":"app.bsky.richtext.facet","index":{"byteEnd":12,"byteStart":0},"features":[{"did":"@did","$type":"app.bsky.richtext.facet#mention"}]}],"createdAt":"@time"}`},
	{3, "create", "app.bsky.feed.post", "@tid", `{"tags":["@text"],"text":"@text","$type":"app.bsky.feed.post","langs":["en"],"facets":[{"index":{"byteEnd":120,"byteStart":110},"features":[{"tag":"@text","$type":"app.bsky.richtext.facet#tag"}]}],"createdAt":"@time"}`},
	{2, "create", "app.bsky.feed.post", "@tid", `{"text":"@text","$type":"app.bsky.feed.post","embed":{"$type":"app.bsky.embed.images","images":[{"alt":"","image":"@blob:image/jpeg","aspectRatio":{"width":1500,"height":2000}}]},"langs":["en"],"labels":{"$type":"com.atproto.label.defs#selfLabels","values":[{"val":"porn"}]},"createdAt":"@time"}`},
	{2, "create", "app.bsky.feed.post", "@tid", `{"text":"@text","$type":"app.bsky.feed.post","embed":{"$type":"app.bsky.embed.images","images":[{"alt":"@text","image":"@blob:image/jpeg","aspectRatio":{"width":1500,"height":2000}}]},"langs":["en"],"labels":{"$type":"com.atproto.label.defs#selfLabels","values":[{"val":"sexual"}]},"createdAt":"@time"}`},
	{2, "create", "app.bsky.feed.post", "@tid", `{"text":"@text","$type":"app.bsky.feed.post","langs":["en"],"facets":[{"index":{"byteEnd":120,"byteStart":110},"features":[{"uri":"@url","$type":"app.bsky.richtext.facet#link"}]}],"createdAt":"@time","bridgyOriginalUrl":"@url","bridgyOriginalText":"@text"}`},
	{20, "delete", "app.bsky.feed.post", "@tid", ""},

	{90, "create", "app.bsky.feed.like", "@tid", `{"$type":"app.bsky.feed.like","subject":"@ref:app.bsky.feed.post","createdAt":"@time"}`},
	{20, "create", "app.bsky.feed.like", "@tid", `{"via":"@ref:app.bsky.feed.repost","$type":"app.bsky.feed.like","subject":"@ref:app.bsky.feed.post","createdAt":"@time"}`},
	{3, "create", "app.bsky.feed.like", "@tid", `{"$type":"app.bsky.feed.like","subject":"@ref:app.bsky.feed.generator","createdAt":"@time"}`},
	{12, "delete", "app.bsky.feed.like", "@tid", ""},
	{14, "create", "app.bsky.feed.repost", "@tid", `{"$type":"app.bsky.feed.repost","subject":"@ref:app.bsky.feed.post","createdAt":"@time"}`},
	{5, "create", "app.bsky.feed.repost", "@tid", `{"via":"@ref:app.bsky.feed.repost","$type":"app.bsky.feed.repost","subject":"@ref:app.bsky.feed.post","createdAt":"@time"}`},
	{2, "delete", "app.bsky.feed.repost", "@tid", ""},
	{9, "create", "app.bsky.graph.follow", "@tid", `{"$type":"app.bsky.graph.follow","subject":"@did","createdAt":"@time"}`},
	{2, "create", "app.bsky.graph.follow", "@tid", `{"via":"@ref:app.bsky.graph.starterpack","$type":"app.bsky.graph.follow","subject":"@did","createdAt":"@time"}`},
	{3, "delete", "app.bsky.graph.follow", "@tid", ""},

	// The rest of Bluesky's.
	{30, "create", "app.bsky.graph.block", "@tid", `{"$type":"app.bsky.graph.block","subject":"@did","createdAt":"@time"}`},
	{8, "delete", "app.bsky.graph.block", "@tid", ""},
	{20, "create", "app.bsky.graph.listitem", "@tid", `{"list":"@at:app.bsky.graph.list","$type":"app.bsky.graph.listitem","subject":"@did","createdAt":"@time"}`},
	{5, "delete", "app.bsky.graph.listitem", "@tid", ""},
	{3, "create", "app.bsky.graph.list", "@tid", `{"name":"@text","$type":"app.bsky.graph.list","avatar":"@blob:image/jpeg","purpose":"app.bsky.graph.defs#modlist","createdAt":"@time","description":"@text"}`},
	{2, "create", "app.bsky.graph.list", "@tid", `{"name":"@text","$type":"app.bsky.graph.list","purpose":"app.bsky.graph.defs#curatelist","createdAt":"@time","description":"@text"}`},
	{2, "create", "app.bsky.graph.list", "@tid", `{"name":"@text","$type":"app.bsky.graph.list","purpose":"app.bsky.graph.defs#referencelist","createdAt":"@time"}`},
	{2, "create", "app.bsky.graph.listblock", "@tid", `{"$type":"app.bsky.graph.listblock","subject":"@at:app.bsky.graph.list","createdAt":"@time"}`},
	{3, "create", "app.bsky.graph.starterpack", "@tid", `{"list":"@at:app.bsky.graph.list","name":"@text","$type":"app.bsky.graph.starterpack","feeds":[],"createdAt":"@time","description":"@text","updatedAt":"@time"}`},
	{1, "create", "app.bsky.graph.verification", "@tid", `{"$type":"app.bsky.graph.verification","handle":"@text","subject":"@did","createdAt":"@time","displayName":"@text"}`},
	{20, "update", "app.bsky.actor.profile", "self", `{"$type":"app.bsky.actor.profile","avatar":"@blob:image/jpeg","banner":"@blob:image/jpeg","createdAt":"@time","pinnedPost":"@ref:app.bsky.feed.post","description":"@text","displayName":"@text"}`},
	{10, "create", "app.bsky.actor.profile", "self", `{"$type":"app.bsky.actor.profile","avatar":"@blob:image/jpeg","createdAt":"@time","description":"@text","displayName":"@text"}`},
	{5, "update", "app.bsky.actor.profile", "self", `{"$type":"app.bsky.actor.profile","avatar":"@blob:image/png","website":"@url","pronouns":"@text","description":"@text","displayName":"@text"}`},
	{4, "create", "app.bsky.actor.profile", "self", `{"$type":"app.bsky.actor.profile","createdAt":"@time","displayName":"@text"}`},
	{3, "create", "app.bsky.actor.profile", "self", `{"$type":"app.bsky.actor.profile","avatar":"@blob:image/jpeg","labels":{"$type":"com.atproto.label.defs#selfLabels","values":[{"val":"!no-unauthenticated"}]},"createdAt":"@time","joinedViaStarterPack":"@ref:app.bsky.graph.starterpack","description":"@text","displayName":"@text"}`},
	{3, "update", "app.bsky.actor.status", "self", `{"$type":"app.bsky.actor.status","embed":{"$type":"app.bsky.embed.external","external":{"uri":"@url","thumb":"@blob:image/jpeg","title":"@text","description":"@text"}},"status":"app.bsky.actor.status#live","createdAt":"@time","durationMinutes":240}`},
	{12, "create", "app.bsky.feed.threadgate", "@tid", `{"post":"@at:app.bsky.feed.post","$type":"app.bsky.feed.threadgate","allow":[{"$type":"app.bsky.feed.threadgate#followerRule"},{"$type":"app.bsky.feed.threadgate#followingRule"},{"$type":"app.bsky.feed.threadgate#mentionRule"}],"createdAt":"@time","hiddenReplies":[]}`},
	{4, "create", "app.bsky.feed.threadgate", "@tid", `{"post":"@at:app.bsky.feed.post","$type":"app.bsky.feed.threadgate","allow":[],"createdAt":"@time","hiddenReplies":["@at:app.bsky.feed.post"]}`},
	{3, "update", "app.bsky.feed.threadgate", "@tid", `{"post":"@at:app.bsky.feed.post","$type":"app.bsky.feed.threadgate","allow":[{"list":"@at:app.bsky.graph.list","$type":"app.bsky.feed.threadgate#listRule"}],"createdAt":"@time","hiddenReplies":["@at:app.bsky.feed.post"]}`},
	{14, "create", "app.bsky.feed.postgate", "@tid", `{"post":"@at:app.bsky.feed.post","$type":"app.bsky.feed.postgate","createdAt":"@time","embeddingRules":[{"$type":"app.bsky.feed.postgate#disableRule"}],"detachedEmbeddingUris":[]}`},
	{3, "update", "app.bsky.feed.postgate", "@tid", `{"post":"@at:app.bsky.feed.post","$type":"app.bsky.feed.postgate","createdAt":"@time","embeddingRules":[],"detachedEmbeddingUris":["@at:app.bsky.feed.post"]}`},
	{1, "update", "app.bsky.feed.generator", "@text", `{"did":"did:web:@text","$type":"app.bsky.feed.generator","avatar":"@blob:image/png","createdAt":"@time","contentMode":"app.bsky.feed.defs#contentModeUnspecified","description":"@text","displayName":"@text","acceptsInteractions":false}`},
	{1, "create", "app.bsky.labeler.service", "self", `{"$type":"app.bsky.labeler.service","policies":{"labelValues":["@text"],"labelValueDefinitions":[{"blurs":"none","locales":[{"lang":"en","name":"@text","description":"@text"}],"severity":"inform","adultOnly":false,"identifier":"@text","defaultSetting":"warn"}]},"createdAt":"@time"}`},
	{3, "create", "app.bsky.notification.declaration", "self", `{"$type":"app.bsky.notification.declaration","allowSubscriptions":"followers"}`},
	{4, "create", "chat.bsky.actor.declaration", "self", `{"$type":"chat.bsky.actor.declaration","allowIncoming":"all"}`},
	{2, "create", "chat.bsky.actor.declaration", "self", `{"$type":"chat.bsky.actor.declaration","allowIncoming":"following"}`},

	// Other people's.
	{25, "update", "fm.teal.alpha.actor.status", "self", `{"item":{"artists":[{"artistName":"@text"}],"duration":215,"trackName":"@text","playedTime":"@time","releaseName":"@text","submissionClientAgent":"@text"},"time":"@time","$type":"fm.teal.alpha.actor.status","expiry":"@time"}`},
	{12, "create", "fm.teal.alpha.feed.play", "@tid", `{"isrc":"@text","$type":"fm.teal.alpha.feed.play","artists":[{"artistName":"@text","artistMbId":"@text"}],"duration":215,"originUrl":"@url","trackName":"@text","playedTime":"@time","releaseMbId":"@text","releaseName":"@text","recordingMbId":"@text","submissionClientAgent":"@text","musicServiceBaseDomain":"@text"}`},
	{6, "create", "app.rocksky.scrobble", "@tid", `{"tags":[],"album":"@text","title":"@text","$type":"app.rocksky.scrobble","artist":"@text","albumArt":"@blob:image/jpeg","duration":215000,"createdAt":"@time","discNumber":1,"albumArtist":"@text","releaseDate":"@time","spotifyLink":"@url","trackNumber":1}`},
	{4, "create", "app.rocksky.song", "@tid", `{"album":"@text","title":"@text","$type":"app.rocksky.song","artist":"@text","duration":215000,"createdAt":"@time","discNumber":1,"albumArtist":"@text","trackNumber":1}`},
	{3, "create", "app.popsky.review", "@tid", `{"tags":[],"$type":"app.popsky.review","rating":8,"createdAt":"@time","identifiers":{"imdbId":"@text","tmdbId":"@text"},"creativeWorkType":"movie"}`},
	{3, "update", "buzz.bookhive.book", "@tid", `{"cover":"@blob:image/jpeg","title":"@text","$type":"buzz.bookhive.book","hiveId":"@text","status":"buzz.bookhive.defs#finished","authors":"@text","createdAt":"@time"}`},
	{5, "create", "sh.tangled.git.refUpdate", "@tid", `{"ref":"refs/heads/main","meta":{"commitCount":{"byEmail":[{"count":1,"email":"@text"}]},"isDefaultRef":false,"langBreakdown":{"inputs":[{"lang":"Go","size":1234}]}},"$type":"sh.tangled.git.refUpdate","newSha":"@text","oldSha":"@text","repoDid":"@did","repoName":"@text","committerDid":"@did"}`},
	{2, "create", "sh.tangled.repo", "@tid", `{"knot":"@text","name":"@text","$type":"sh.tangled.repo","owner":"@did","createdAt":"@time","description":"@text"}`},
	{2, "create", "sh.tangled.repo.issue", "@tid", `{"body":"@text","repo":"@at:sh.tangled.repo","$type":"sh.tangled.repo.issue","title":"@text","createdAt":"@time"}`},
	{2, "create", "sh.tangled.repo.issue.comment", "@tid", `{"body":"@text","$type":"sh.tangled.repo.issue.comment","issue":"@at:sh.tangled.repo.issue","createdAt":"@time"}`},
	{2, "create", "sh.tangled.repo.pull", "@tid", `{"patch":"@text","title":"@text","$type":"sh.tangled.repo.pull","source":{"sha":"@text","branch":"@text"},"target":{"repo":"@at:sh.tangled.repo","branch":"main"},"createdAt":"@time"}`},
	{2, "create", "sh.tangled.feed.star", "@tid", `{"$type":"sh.tangled.feed.star","subject":"@at:sh.tangled.repo","createdAt":"@time"}`},
	{2, "create", "sh.tangled.graph.follow", "@tid", `{"$type":"sh.tangled.graph.follow","subject":"@did","createdAt":"@time"}`},
	{2, "create", "sh.tangled.publicKey", "@tid", `{"key":"@text","name":"@text","$type":"sh.tangled.publicKey","createdAt":"@time"}`},
	{4, "create", "com.whtwnd.blog.entry", "@tid", `{"$type":"com.whtwnd.blog.entry","theme":"github-light","title":"@text","content":"@text","createdAt":"@time","visibility":"public"}`},
	{4, "create", "pub.leaflet.document", "@tid", `{"$type":"pub.leaflet.document","pages":[{"$type":"pub.leaflet.pages.linearDocument","blocks":[{"$type":"pub.leaflet.pages.linearDocument#block","block":{"$type":"pub.leaflet.blocks.text","facets":[],"plaintext":"@text"}}]}],"title":"@text","author":"@did","publication":"@at:pub.leaflet.publication","description":"@text","publishedAt":"@time"}`},
	{2, "create", "pub.leaflet.graph.subscription", "@tid", `{"$type":"pub.leaflet.graph.subscription","publication":"@at:pub.leaflet.publication"}`},
	{2, "create", "pub.leaflet.comment", "@tid", `{"$type":"pub.leaflet.comment","facets":[],"subject":"@at:pub.leaflet.document","createdAt":"@time","plaintext":"@text"}`},
	{4, "create", "site.standard.document", "@tid", `{"path":"@text","site":"@at:site.standard.publication","tags":["@text"],"$type":"site.standard.document","title":"@text","content":{"$type":"pub.leaflet.content","pages":[]},"coverImage":"@blob:image/png","description":"@text","publishedAt":"@time","textContent":"@text"}`},
	{2, "create", "site.standard.publication", "@tid", `{"url":"@url","icon":"@blob:image/png","name":"@text","$type":"site.standard.publication","description":"@text","preferences":{"showInDiscover":true}}`},
	{2, "create", "site.standard.graph.subscription", "@tid", `{"$type":"site.standard.graph.subscription","publication":"@at:site.standard.publication"}`},
	{3, "create", "place.stream.chat.message", "@tid", `{"text":"@text","$type":"place.stream.chat.message","streamer":"@did","createdAt":"@time"}`},
	{3, "create", "place.stream.livestream", "@tid", `{"url":"@url","post":"@ref:app.bsky.feed.post","$type":"place.stream.livestream","title":"@text","createdAt":"@time","thumb":"@blob:image/jpeg"}`},
	{6, "update", "place.stream.segment", "@tid", `{"id":"@text","size":1234567,"$type":"place.stream.segment","audio":[{"rate":48000,"codec":"opus","channels":2}],"video":[{"codec":"h264","width":1920,"height":1080,"bframes":false,"framerate":{"den":1,"num":60}}],"creator":"@did","duration":1000000000,"startTime":"@time","signingKey":"did:key:@text"}`},
	{3, "create", "community.lexicon.calendar.event", "@tid", `{"mode":"community.lexicon.calendar.event#inperson","name":"@text","$type":"community.lexicon.calendar.event","endsAt":"@time","status":"community.lexicon.calendar.event#scheduled","startsAt":"@time","createdAt":"@time","locations":[{"name":"@text","$type":"community.lexicon.location.address","region":"@text","street":"@text","country":"@text","locality":"@text","postalCode":"@text"}],"description":"@text"}`},
	{3, "create", "community.lexicon.calendar.rsvp", "@tid", `{"$type":"community.lexicon.calendar.rsvp","status":"community.lexicon.calendar.rsvp#going","subject":"@ref:community.lexicon.calendar.event","createdAt":"@time"}`},
	{2, "create", "community.lexicon.bookmarks.bookmark", "@tid", `{"tags":["@text"],"$type":"community.lexicon.bookmarks.bookmark","subject":"@url","createdAt":"@time"}`},
	{2, "create", "blue.flashes.actor.profile", "self", `{"$type":"blue.flashes.actor.profile","createdAt":"@time","showFeeds":true,"showLikes":false,"showLists":true,"showMedia":true,"enablePortfolio":false,"portfolioLayout":"grid","allowRawDownload":false}`},
	{3, "update", "blue.linkat.board", "self", `{"$type":"blue.linkat.board","cards":[{"url":"@url","text":"@text","emoji":""}]}`},
	{3, "create", "social.grain.photo", "@tid", `{"alt":"@text","$type":"social.grain.photo","photo":"@blob:image/jpeg","createdAt":"@time","aspectRatio":{"width":2000,"height":1500}}`},
	{2, "create", "social.grain.gallery.item", "@tid", `{"item":"@at:social.grain.photo","$type":"social.grain.gallery.item","gallery":"@at:social.grain.gallery","position":0,"createdAt":"@time"}`},
	{2, "create", "network.cosmik.card", "@tid", `{"url":"@url","type":"URL","$type":"network.cosmik.card","content":{"url":"@url","$type":"network.cosmik.card#urlContent","metadata":{"type":"article","$type":"network.cosmik.card#urlMetadata","title":"@text","imageUrl":"@url","retrievedAt":"@time","description":"@text"}},"createdAt":"@time"}`},
	{2, "create", "at.margin.annotation", "@tid", `{"body":{"value":"@text","format":"text/plain"},"$type":"at.margin.annotation","target":{"title":"@text","source":"@url","sourceHash":"@text"},"createdAt":"@time","motivation":"commenting"}`},
	{3, "create", "xyz.statusphere.status", "@tid", `{"$type":"xyz.statusphere.status","status":"@text","createdAt":"@time"}`},
	{2, "create", "app.beaconbits.beacon", "@tid", `{"$type":"app.beaconbits.beacon","venueName":"@text","createdAt":"@time","visibility":"public","venueAddress":"@text","location":{"$type":"community.lexicon.location.geo","latitude":"@text","longitude":"@text"}}`},
	{2, "create", "com.shinolabs.pinksea.oekaki", "@tid", `{"nsfw":false,"tags":["@text"],"$type":"com.shinolabs.pinksea.oekaki","image":{"blob":"@blob:image/png","imageLink":{"alt":"@text"}},"createdAt":"@time"}`},
	{2, "create", "link.woosh.linkPage", "self", `{"$type":"link.woosh.linkPage","collections":[{"links":[{"uri":"@url","title":"@text"}],"label":"@text"}]}`},
	{2, "create", "uk.skyblur.post", "@tid", `{"uri":"@at:app.bsky.feed.post","text":"@text","$type":"uk.skyblur.post","createdAt":"@time","visibility":"public","additional":""}`},
	{1, "create", "com.atproto.lexicon.schema", "@text", `{"id":"@text","defs":{"main":{"key":"tid","type":"record","record":{"type":"object","required":["createdAt"],"properties":{"createdAt":{"type":"string","format":"datetime"},"subject":{"ref":"com.atproto.repo.strongRef","type":"ref"},"uri":{"type":"string","format":"at-uri"},"did":{"type":"string","format":"did"},"text":{"type":"string","maxLength":3000,"maxGraphemes":300}}},"description":"@text"}},"$type":"com.atproto.lexicon.schema","lexicon":1}`},
	{5, "delete", "fm.teal.alpha.feed.play", "@tid", ""},
	{2, "delete", "app.bsky.graph.listblock", "@tid", ""},
	{3, "delete", "app.bsky.feed.threadgate", "@tid", ""},
	{3, "delete", "app.bsky.feed.postgate", "@tid", ""},
}

// shape makes n events of these shapes.
func shape(n int, seed uint64, add func(payload []byte)) error {
	s := shaper{rng: rand.New(rand.NewPCG(seed, 1)), now: start}
	total := 0
	for i := range shapes {
		total += shapes[i].weight
	}
	for range n {
		roll, i := s.rng.IntN(total), 0
		for ; roll >= shapes[i].weight; i++ {
			roll -= shapes[i].weight
		}
		payload, err := s.event(shapes[i].operation, shapes[i].collection, shapes[i].rkey, shapes[i].record)
		if err != nil {
			return fmt.Errorf("shape of %s: %w", shapes[i].collection, err)
		}
		add(payload)
	}
	return nil
}

type shaper struct {
	rng *rand.Rand
	now event.Cursor
}

func (s *shaper) event(operation, collection, rkey, record string) ([]byte, error) {
	s.now += event.Cursor(s.rng.IntN(step))
	did := s.text("@did")
	var out strings.Builder
	fmt.Fprintf(&out, `{"did":"%s","time_us":%d,"kind":"commit","commit":{"rev":"%s","operation":"%s","collection":"%s","rkey":"%s"`,
		did, s.now, s.text("@tid"), operation, collection, s.text(rkey))
	if record != "" {
		d := json.NewDecoder(strings.NewReader(record))
		d.UseNumber()
		var v any
		if err := d.Decode(&v); err != nil {
			return nil, err
		}
		out.WriteString(`,"record":`)
		s.write(&out, v)
		fmt.Fprintf(&out, `,"cid":"%s"`, s.text("@cid"))
	}
	out.WriteString("}}")
	return []byte(out.String()), nil
}

// write writes a value with the keys of maps in the order of DAG-CBOR: the shorter first.
func (s *shaper) write(out *strings.Builder, v any) {
	switch v := v.(type) {
	case map[string]any:
		keys := slices.SortedFunc(maps.Keys(v), func(a, b string) int {
			return cmp.Or(len(a)-len(b), strings.Compare(a, b))
		})
		separator := "{"
		for _, key := range keys {
			fmt.Fprintf(out, `%s"%s":`, separator, key)
			s.write(out, v[key])
			separator = ","
		}
		out.WriteByte('}')
	case []any:
		out.WriteByte('[')
		for i, item := range v {
			if i > 0 {
				out.WriteByte(',')
			}
			s.write(out, item)
		}
		out.WriteByte(']')
	case json.Number:
		n, _ := strconv.Atoi(string(v))
		if n > 1 {
			n = n/2 + s.rng.IntN(n)
		}
		out.WriteString(strconv.Itoa(n))
	case string:
		if collection, ok := strings.CutPrefix(v, "@ref:"); ok {
			fmt.Fprintf(out, `{"cid":"%s","uri":"%s"}`, s.text("@cid"), s.text("@at:"+collection))
		} else if mime, ok := strings.CutPrefix(v, "@blob:"); ok {
			fmt.Fprintf(out, `{"ref":{"$link":"bafkrei%s"},"size":%d,"$type":"blob","mimeType":"%s"}`, s.letters(base32, 52), 10_000+s.rng.IntN(900_000), mime)
		} else {
			out.WriteString(`"` + s.text(v) + `"`)
		}
	default:
		json, _ := json.Marshal(v) // true, false, null
		out.Write(json)
	}
}

const base32 = "abcdefghijklmnopqrstuvwxyz234567"

func (s *shaper) letters(of string, n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = of[s.rng.IntN(len(of))]
	}
	return string(b)
}

func (s *shaper) text(t string) string {
	switch {
	case t == "@did":
		return "did:plc:" + s.letters(base32, 24)
	case t == "@cid":
		return "bafyrei" + s.letters(base32, 52)
	case t == "@tid":
		return "3n" + s.letters("234567abcdefghijklmnopqrstuvwxyz", 11)
	case t == "@time":
		return (s.now - event.Cursor(s.rng.IntN(4_000_000))).Time().UTC().Format("2006-01-02T15:04:05.000Z")
	case strings.HasPrefix(t, "@at:"):
		return "at://" + s.text("@did") + "/" + t[len("@at:"):] + "/" + s.text("@tid")
	case t == "@url":
		return "https://" + s.letters(base32, 20)
	case strings.Contains(t, "@text"):
		return strings.Replace(t, "@text", s.letters("etaoinshrdlucmfwygpbvk", 5+s.rng.IntN(40)), 1)
	}
	return t
}
