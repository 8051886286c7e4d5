package simrelay

// The made-up sentences that posts are put together from, by language. They are weighted
// roughly as the live network's languages are: a language is listed once per share.

type language struct {
	tag     string
	join    string
	phrases []string
}

var english = language{"en", " ", []string{
	"good morning everyone", "the ferry was late again and nobody minded", "finally finished the book, 10/10",
	"does anyone else's cat sit on the router for warmth?", "I can't believe it's already autumn.",
	"new drawing up!", "thread below:", "hot take: soup is better the second day", "so tired of meetings",
	"we walked along the river until the rain started and then we kept walking anyway, because why not",
	"“quoted” — with dashes…", "what a match!!", "reading about old lighthouses", "lol", "this.",
	"somebody please explain why the build only fails on Tuesdays", "tiny victory: the sourdough rose",
	"line one\nline two\n\nline four", "back\\slash and a \"quote\" and a\ttab", "1 < 2 && 3 > 2 </script>",
}}

var japanese = language{"ja", "", []string{
	"おはようございます", "今日は一日中雨でした。", "駅前のパン屋さんが閉店するらしい", "眠い…", "新しいイラスト描きました！",
	"推しが尊い", "明日から三連休なのにずっと仕事", "やっと原稿が終わった〜", "猫が布団から出てこない", "ラーメン食べたい",
	"ﾊﾝｶｸも混ぜてみる", "この曲ずっと聴いてる", "𠮷野家で待ち合わせ",
}}

var portuguese = language{"pt", " ", []string{
	"bom dia, gente", "que saudade do mar", "não aguento mais esse calor", "alguém viu o jogo ontem?", "café primeiro, o resto depois",
	"hoje a feira estava linda e cheia de mangas", "kkkkkkkk", "amanhã é sexta, calma",
}}

var languages = []language{
	english, english, english, english, english, english,
	japanese, japanese, japanese,
	portuguese, portuguese,
	{"de", " ", []string{"Guten Morgen zusammen", "der Zug hat schon wieder Verspätung", "Größe ist relativ", "endlich Feierabend", "wer hat Lust auf Kaffee?"}},
	{"es", " ", []string{"buenos días a todas", "¿alguien más sin dormir?", "qué día tan largo", "el niño aprendió a silbar", "viernes por fin"}},
	{"fr", " ", []string{"bonjour à tous", "il pleut encore sur la côte", "c'est l'été ou quoi ?", "j'ai oublié mon parapluie", "une tarte aux prunes"}},
	{"ko", " ", []string{"좋은 아침이에요", "오늘 너무 춥다", "커피 한 잔 마시고 시작합니다", "드디어 주말이다", "고양이가 또 화분을 엎었어요"}},
	{"ar", " ", []string{"صباح الخير", "الجو جميل اليوم", "قهوة الصباح أولا", "كتاب جديد على الطاولة"}},
	{"he", " ", []string{"בוקר טוב", "עוד יום ארוך", "הגשם סוף סוף הגיע", "מישהו רוצה קפה?"}},
	{"ru", " ", []string{"доброе утро", "опять снег", "кто-нибудь уже читал эту книгу?", "чай с вареньем"}},
	{"th", "", []string{"สวัสดีตอนเช้า", "วันนี้ฝนตกหนักมาก", "หิวข้าวแล้ว"}},
	{"zh", "", []string{"早上好", "今天的云很好看", "終於下班了", "有人一起喝茶嗎？"}},
	{"hi", " ", []string{"सुप्रभात दोस्तों", "आज मौसम अच्छा है", "चाय पीने का समय"}},
	{"uk", " ", []string{"доброго ранку", "їжачок знову прийшов у двір", "кава й тиша"}},
}

var emoji = []string{"😀", "🎉", "🔥", "❤️", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇯🇵", "👍🏽", "🦋", "✨", "😭", "🍜", "\u200d", "e\u0301"}

var hashtags = []string{"art", "photography", "イラスト", "caturday", "nowplaying", "книга", "gamedev", "صباح", "birds"}

var names = []string{
	"alder", "birch", "cedar", "dune", "ember", "fjord", "grove", "heron", "inlet", "juniper", "kestrel", "larch",
	"mesa", "nettle", "osprey", "pine", "quartz", "rowan", "sorrel", "thistle", "umber", "vetch", "willow", "yarrow",
}

var sites = []string{
	"https://example.com/articles/lighthouse-keepers", "https://news.example.org/2026/weather/rain-again?ref=feed&utm=none",
	"https://video.example.net/watch?v=Zq8_example", "https://example.jp/%E3%83%8B%E3%83%A5%E3%83%BC%E3%82%B9/4821",
}
