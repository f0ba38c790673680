"""
Juice.jl's circuits (ProbabilisticCircuits.jl), taken over and handed over. Units keep their order, and what is shared stays shared; time
and memory are linear in the edges, and nothing here recurses, however deep a circuit is.
"""
module LVDJuiceProbabilisticCircuitsExt

using LVDJuice: LVDJuice, BINOMIAL, CATEGORICAL, Circuit, INDICATOR, JpcReader, LITERAL, PRODUCT, SUM
using LVDJuice: add_input!, add_unit!, child, children, edges, finish!, log_weight, pause, settle!
using ProbabilisticCircuits: Binomial, Categorical, Indicator, Literal, PlainInputNode, PlainMulNode, PlainProbCircuit, PlainSumNode
using ProbabilisticCircuits: ProbCircuit, ProbabilisticCircuits, dist, inputs, isinput, ismul, params, randvar

"All units below a root, children before parents, in the order in which a walk from left to right leaves them; each one's number."
function numbered(root::ProbCircuit)
    number, order, path = IdDict{ProbCircuit,Int}(), ProbCircuit[], Tuple{ProbCircuit,Int}[(root, 1)]
    while !isempty(path)
        node, next = pop!(path)
        haskey(number, node) && continue
        if isinput(node) || next > length(inputs(node))
            push!(order, node)
            number[node] = length(order)
        else
            push!(path, (node, next + 1))
            push!(path, (inputs(node)[next], 1))
        end
        pause(100)
    end
    return order, number
end

"""
    Circuit(pc::ProbCircuit) -> Circuit

A circuit of Juice.jl's as one of ours, with one head, its root. A variable has as many categories as the input of it that needs most.
Throws an `ArgumentError` where an input's distribution is none that we know, or parameters do not sum to 1.
"""
function LVDJuice.Circuit(pc::ProbCircuit)
    order, number = numbered(pc)
    entries = sum(node -> isinput(node) && dist(node) isa Categorical ? length(params(node)) : 1, order)
    r = JpcReader(16 * (entries + length(order)))  # what a file of as many numbers may ask for
    r.announced = length(order)
    for node in order
        isinput(node) ? take_input!(r, Int(randvar(node)), dist(node)) : take_inner!(r, node, number)
    end
    return finish!(r)
end

take_input!(r, variable, d::Literal) = add_input!(r, LITERAL, variable, 2, Int(d.value))
take_input!(r, variable, d::Indicator) = add_input!(r, INDICATOR, variable, Int(d.value) + 1, Int(d.value))
take_input!(r, variable, d::Binomial) = add_input!(r, BINOMIAL, variable, Int(d.N) + 1, 0, d.p)

function take_input!(r, variable, d::Categorical)
    place, p = length(r.listed) + 1, exp.(Float64.(params(d)))
    append!(r.listed, p)
    settle!(r, view(r.listed, place:length(r.listed)), sum(p))
    add_input!(r, CATEGORICAL, variable, length(p), place)
end

take_input!(r, variable, d) = throw(ArgumentError("variable $variable: found an input of type $(typeof(d)), wanted one of Juice.jl's own"))

function take_inner!(r, node, number)
    b, first = r.builder, length(r.builder.child) + 1
    p = ismul(node) ? ones(length(inputs(node))) : exp.(Float64.(params(node)))
    for (child, weight) in zip(inputs(node), p)
        Float32(weight) > 0 || continue
        push!(b.child, number[child])
        push!(b.weight, weight)
        pause(100)
    end
    ismul(node) || settle!(r, view(b.weight, first:length(b.weight)), sum(p))
    add_unit!(b, ismul(node) ? PRODUCT : SUM)
end

"""
    ProbCircuit(circuit; head = nothing) -> PlainProbCircuit

A circuit of ours as one of Juice.jl's: what `head` reaches, from 1; nothing: the only head, or the sum over all of them with their prior
weights. Edges of weight 0 are left out.
"""
function ProbabilisticCircuits.ProbCircuit(c::Circuit; head::Union{Nothing,Integer}=nothing)
    head === nothing || checkbounds(Bool, c.heads, head) ||
        throw(ArgumentError("head: found $(head - 1), the circuit has heads 0..$(length(c.heads) - 1)"))
    roots = head === nothing ? c.heads : c.heads[head:head]
    wanted = reached(c, roots)
    nodes = Vector{PlainProbCircuit}(undef, length(c.kind))
    for u in findall(wanted)
        nodes[u] = handed_over(c, u, nodes)
        pause(100 * length(edges(c, u)) + 10 * c.categories[u])
    end
    length(roots) == 1 && return nodes[roots[1]]
    heavy = findall(>(0), c.head_weight)
    return PlainSumNode(PlainProbCircuit[nodes[u] for u in c.heads[heavy]], log_weight.(c.head_weight[heavy]))
end

LVDJuice.juice_circuit(c::Circuit, head) = ProbCircuit(c; head=head === nothing ? nothing : head + 1)

function reached(c::Circuit, roots)
    wanted = fill(false, length(c.kind))
    wanted[roots] .= true
    for u in length(c.kind):-1:1, v in (wanted[u] ? children(c, u) : Int32[])
        wanted[v] = true
        pause(10)
    end
    return wanted
end

function handed_over(c::Circuit, u, nodes)
    kind, variable = c.kind[u], Int(c.variable[u])
    if kind == PRODUCT
        return PlainMulNode(PlainProbCircuit[nodes[v] for v in children(c, u)])
    elseif kind == SUM
        own = [e for e in edges(c, u) if c.weight[e] > 0]
        return PlainSumNode(PlainProbCircuit[nodes[child(c, u, e)] for e in own], log_weight.(c.weight[own]))
    end
    p = LVDJuice.probabilities(c, u)
    kind == CATEGORICAL && return PlainInputNode(variable, Categorical(log_weight.(p)))
    kind == BINOMIAL && return PlainInputNode(variable, Binomial(UInt32(c.categories[u] - 1), c.success[u]))
    kind == LITERAL && return PlainInputNode(variable, Literal(p[2] == 1))
    kind == INDICATOR && return PlainInputNode(variable, Indicator(findfirst(==(1), p) - 1))
    throw(ArgumentError("unit $(u - 1): Juice.jl has no inputs of this kind"))
end

"""
Fills `out`, `(circuits, samples)`, with log p(x) of these circuits, which Juice.jl computes on the CPU, in single precision; `mask` is true
where a value is missing. The data are checked.
"""
function LVDJuice.juice_log_likelihoods!(out, X, mask, circuits::ProbCircuit...)
    data = mask === nothing ? permutedims(X) : permutedims(ifelse.(mask, missing, X))
    for (i, circuit) in enumerate(circuits)
        out[i, :] = ProbabilisticCircuits.loglikelihoods(circuit, data; batch_size=min(256, size(data, 1)))
    end
    return nothing
end

end
