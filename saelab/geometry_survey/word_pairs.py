"""Which pairs of English words stand in one relation?"""

__all__ = ["RELATIONS", "word_pairs"]

RELATIONS: dict[str, str] = {
    "country, capital": "France Paris, Italy Rome, Spain Madrid, Germany Berlin, England London, "
    "Russia Moscow, Japan Tokyo, China Beijing, Egypt Cairo, Greece Athens, Cuba Havana, "
    "Austria Vienna",
    "country, its people": "France French, Italy Italian, Spain Spanish, Germany German, "
    "Russia Russian, Japan Japanese, China Chinese, Egypt Egyptian, Greece Greek, Mexico Mexican, "
    "Korea Korean, Canada Canadian",
    "man, woman": "man woman, king queen, father mother, son daughter, brother sister, "
    "uncle aunt, husband wife, boy girl, actor actress, prince princess, he she, men women",
    "one, many": "ship ships, war wars, law laws, state states, nation nations, tax taxes, "
    "child children, army armies, right rights, year years, dollar dollars, bank banks",
    "present, past": "go went, come came, see saw, take took, make made, give gave, find found, "
    "think thought, know knew, bring brought, buy bought, send sent",
    "plain, more": "great greater, large larger, small smaller, strong stronger, high higher, "
    "low lower, long longer, short shorter, old older, young younger, good better, bad worse",
    "number, its place": "one first, two second, three third, four fourth, five fifth, six sixth, "
    "seven seventh, eight eighth, nine ninth, ten tenth",
    "deed, doer": "teach teacher, write writer, lead leader, farm farmer, speak speaker, "
    "work worker, build builder, read reader, sing singer, paint painter, own owner, "
    "manage manager",
    "word, its opposite": "hot cold, rich poor, war peace, open closed, day night, strong weak, "
    "friend enemy, buy sell, true false, early late, begin end, black white",
}
"""Pairs of words by relation, for text in English."""


def word_pairs() -> dict[str, list[tuple[str, str]]]:
    """Relation -> its pairs.

    >>> word_pairs()["country, capital"][0]
    ('France', 'Paris')
    """
    found: dict[str, list[tuple[str, str]]] = {}
    for name, line in RELATIONS.items():
        split = [pair.split() for pair in line.split(", ")]
        found[name] = [(a, b) for a, b in split]
    return found
